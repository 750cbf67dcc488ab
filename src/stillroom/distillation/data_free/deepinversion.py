"""Adaptive DeepInversion: pixels optimised directly, under priors of natural images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from stillroom.cards import Card, Paper, Quirk
from stillroom.distillation.data_free._checks import check_bank, check_weights
from stillroom.distillation.data_free.inversion import Made, Scene, optimise, synthesis_loss
from stillroom.losses.checks import full_precision, positive

__all__ = ["DeepInversion", "js_divergence", "total_variation"]


def total_variation(images: Tensor) -> Tensor:
    """Return the mean absolute difference of neighbouring pixels, summed over four directions.

    H. Yin et al., "Dreaming to Distill", CVPR 2020: horizontal, vertical and both diagonals.

    Shapes:
        images: [B, C, H, W].

    Example:
        >>> total_variation(torch.tensor([[[[0.0, 1.0], [0.0, 1.0]]]]))
        tensor(3.)
    """
    across = images[..., :, :-1] - images[..., :, 1:]
    down = images[..., :-1, :] - images[..., 1:, :]
    falling = images[..., :-1, :-1] - images[..., 1:, 1:]
    rising = images[..., 1:, :-1] - images[..., :-1, 1:]
    return across.abs().mean() + down.abs().mean() + falling.abs().mean() + rising.abs().mean()


def js_divergence(
    student: Tensor, teacher: Tensor, *, temperature: float = 3.0, clamp: tuple[float, float] = (0.01, 0.99)
) -> Tensor:
    """Return the Jensen-Shannon divergence of two networks' softened distributions, as ADI computes it.

    H. Yin et al., "Dreaming to Distill", CVPR 2020: with ``M = (P + Q) / 2`` and all three clamped,
    ``½ KL(M ‖ P) + ½ KL(M ‖ Q)``, mean over the batch. Gradient flows into both.

    Args:
        student: Logits.
        teacher: Logits.
        temperature: Softens both.
        clamp: Smallest and largest probability.

    Shapes:
        student, teacher: [B, K].
    """
    p = F.softmax(full_precision(student) / temperature, dim=1)
    q = F.softmax(full_precision(teacher) / temperature, dim=1)
    m = ((p + q) / 2).clamp(*clamp)
    p, q = p.clamp(*clamp), q.clamp(*clamp)
    return 0.5 * F.kl_div(p.log(), m, reduction="batchmean") + 0.5 * F.kl_div(q.log(), m, reduction="batchmean")


@dataclass(frozen=True, kw_only=True)
class DeepInversion:
    """Adaptive DeepInversion (ADI).

    Pixels are optimised without a generator, from noise, under the teacher's BatchNorm statistics, its answers, a
    smoothness prior, and competition: the student is to answer differently. The defaults are those of the released
    code for CIFAR-10; the student steps a round, which it does not say, are CMI's.

    Args:
        kd_steps: Student steps a round.
        g_steps: Steps of the synthesis a round.
        synthesis_batch: Images a round.
        bank_rounds: Rounds of images kept on disk; the oldest go first.
        bn: Weight of the BatchNorm statistics.
        oh: Weight of the classes the images are to show.
        adv: Weight of the competition with the student.
        tv: Weight of the total variation.
        l2: Weight of the norm of the normalised pixels.
        lr_g: Adam's learning rate of the pixels.
        temperature: T of the student's soft targets.

    Raises:
        InputError: A value is out of its range.
    """

    card: ClassVar[Card] = Card(
        name="deepinversion",
        summary="Without data: optimises pixels until the teacher recognises them and knows their statistics.",
        papers=(
            Paper(
                title="Dreaming to Distill: Data-free Knowledge Transfer via DeepInversion",
                authors="H. Yin, P. Molchanov, J. M. Alvarez, Z. Li, A. Mallya, D. Hoiem, N. K. Jha, J. Kautz",
                venue="CVPR",
                year=2020,
                identifier="arXiv:1912.08795",
            ),
        ),
        standing="verified",
        ledger=(
            Quirk(
                paper="Keeps the images of the smallest loss.",
                code="The kept images share memory with the optimised ones, so the last iterate is returned.",
                default="paper",
            ),
        ),
    )
    warmup_epochs: ClassVar[int] = 0
    uses_labels: ClassVar[bool] = False
    customises: ClassVar[bool] = False
    feature_weight: ClassVar[float] = 0.0
    initial_rounds: ClassVar[int] = 0

    kd_steps: int = 2000
    g_steps: int = 1000
    synthesis_batch: int = 256
    bank_rounds: int = 500
    bn: float = 10.0
    oh: float = 1.0
    adv: float = 1.0
    tv: float = 1e-3
    l2: float = 0.0
    lr_g: float = 0.1
    temperature: float = 20.0

    def __post_init__(self) -> None:
        check_bank(self)
        check_weights(self, "bn", "oh", "adv", "tv", "l2")
        positive("lr_g", self.lr_g)
        positive("temperature", self.temperature)

    def steps(self, *, initial: bool) -> int:
        """Return the steps of the synthesis in one round."""
        return self.g_steps

    def synthesise(self, scene: Scene, *, initial: bool) -> Made:
        """Make the images of one round."""
        views, device = scene.views, scene.target.device
        count = len(scene.target)
        noise = torch.randn(count, *scene.shape, generator=scene.generator)
        pixels = noise.to(device, memory_format=torch.channels_last).requires_grad_()  # normalised
        darkest, brightest = views.normalise(torch.zeros_like(views.mean)), views.normalise(torch.ones_like(views.mean))

        def objective(pixels: Tensor) -> dict[str, Tensor]:
            seen = views.rolled(pixels, scene.generator)
            parts = synthesis_loss(
                seen, scene.target, scene.teacher, scene.statistics, scene.student, bn=self.bn, oh=self.oh
            )
            parts["tv"] = total_variation(seen)
            loss = parts["loss"] + self.tv * parts["tv"]
            if self.adv > 0:
                parts["js"] = -js_divergence(scene.student(seen).logits, parts["teacher_logits"])
                loss = loss + self.adv * parts["js"]
            if self.l2 > 0:
                loss = loss + self.l2 * torch.linalg.vector_norm(seen)
            return parts | {"loss": loss}

        @torch.no_grad()
        def clip() -> None:
            pixels.clamp_(darkest, brightest)

        adam = torch.optim.Adam([pixels], lr=self.lr_g, betas=(0.5, 0.99), fused=device.type != "mps")
        # The first iterate is noise outside the valid range.
        clip()
        best, parts = optimise(lambda: pixels, objective, adam, self.g_steps, after=clip, told=scene.told)
        return Made(views.denormalise(best), parts)
