"""DAFL: a generator trained along with the student, towards images the teacher is sure of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from stillroom.cards import Card, Paper
from stillroom.distillation.data_free._checks import check_counts, check_weights
from stillroom.losses.checks import full_precision, positive
from stillroom.models.signals import Signals

__all__ = ["DAFL", "dafl_loss"]


def dafl_loss(
    logits: Tensor, features: Tensor, *, oh: float = 1.0, act: float = 1e-3, balance: float = 20.0
) -> dict[str, Tensor]:
    """Return the generator's loss and its parts.

    H. Chen et al., "Data-Free Learning of Student Networks", ICCV 2019: ``oh · CE(z_T, argmax z_T) − act · mean|f_T| +
    balance · Σ_k p̄_k log p̄_k`` with ``p̄`` the batch's mean softmax.

    Args:
        logits: z_T, the teacher's logits.
        features: f_T, its pooled features.
        oh: Weight of the teacher's certainty.
        act: Weight of the strength of its features.
        balance: Weight of the evenness of the classes.

    Shapes:
        logits: [B, K]. features: [B, d].
    """
    logits, features = full_precision(logits), full_precision(features)
    certain = F.cross_entropy(logits, logits.argmax(1))
    strength = -features.abs().mean()
    mean = F.softmax(logits, dim=1).mean(0)
    evenness = torch.special.xlogy(mean, mean).sum()
    loss = oh * certain + act * strength + balance * evenness
    return {"loss": loss, "onehot": certain.detach(), "act": strength.detach(), "balance": evenness.detach()}


@dataclass(frozen=True, kw_only=True)
class DAFL:
    """Data-free learning: one generator, trained over all rounds beside the student.

    Args:
        ep_steps: Student steps a round.
        kd_steps: Student steps from one update of the generator to the next.
        g_steps: Updates of the generator each time.
        synthesis_batch: Images in each of them.
        oh: Weight of the teacher's certainty.
        act: Weight of the strength of its features.
        balance: Weight of the evenness of the classes.
        lr_g: Adam's learning rate of the generator.
        latent: Size of the generator's latent vectors.
        width: Channels of the generator's last hidden map; its cost grows with the square.
        temperature: T of the student's soft targets.

    Raises:
        InputError: A value is out of its range.
    """

    card: ClassVar[Card] = Card(
        name="dafl",
        summary="Without data: trains a generator of images that the teacher is sure of, beside the student.",
        papers=(
            Paper(
                title="Data-Free Learning of Student Networks",
                authors="H. Chen, Y. Wang, C. Xu, Z. Yang, C. Liu, B. Shi, C. Xu, C. Xu, Q. Tian",
                venue="ICCV",
                year=2019,
                identifier="arXiv:1904.01186",
            ),
        ),
        standing="derived",
    )
    warmup_epochs: ClassVar[int] = 0
    uses_labels: ClassVar[bool] = False
    customises: ClassVar[bool] = False
    feature_weight: ClassVar[float] = 0.0

    ep_steps: int = 400
    kd_steps: int = 5
    g_steps: int = 1
    synthesis_batch: int = 256
    oh: float = 1.0
    act: float = 1e-3
    balance: float = 20.0
    lr_g: float = 1e-3
    latent: int = 512
    width: int = 64
    temperature: float = 20.0

    def __post_init__(self) -> None:
        check_counts(self, "ep_steps", "kd_steps", "g_steps", "synthesis_batch", "latent", "width")
        check_weights(self, "oh", "act", "balance")
        positive("lr_g", self.lr_g)
        positive("temperature", self.temperature)

    def generator_loss(self, teacher: Signals, student: Signals) -> dict[str, Tensor]:
        """Return the loss of images from both networks' signals on them."""
        assert teacher.pooled is not None
        return dafl_loss(teacher.logits, teacher.pooled, oh=self.oh, act=self.act, balance=self.balance)
