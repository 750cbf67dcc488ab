"""ZSKT: a generator trained against the student, towards images on which it and the teacher disagree."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from stillroom.cards import Card, Paper
from stillroom.distillation.data_free._checks import check_counts, check_weights
from stillroom.distillation.data_free.inversion import adversarial_loss
from stillroom.losses.checks import positive
from stillroom.models.signals import Signals

__all__ = ["ZSKT"]


@dataclass(frozen=True, kw_only=True)
class ZSKT:
    """Zero-shot knowledge transfer: generator and student play against each other, ``L_G = −adv · KL(p_T ‖ p_S)``.

    P. Micaelli, A. Storkey, "Zero-shot Knowledge Transfer via Adversarial Belief Matching", NeurIPS 2019; without its
    attention transfer.

    Args:
        ep_steps: Student steps a round.
        kd_steps: Student steps from one update of the generator to the next.
        g_steps: Updates of the generator each time.
        synthesis_batch: Images in each of them.
        adv: Weight of the divergence.
        lr_g: Adam's learning rate of the generator.
        latent: Size of the generator's latent vectors.
        width: Channels of the generator's last hidden map; its cost grows with the square.
        temperature: T of the divergence, for generator and student.

    Raises:
        InputError: A value is out of its range.
    """

    card: ClassVar[Card] = Card(
        name="zskt",
        summary="Without data: trains a generator against the student, on what it and the teacher disagree about.",
        papers=(
            Paper(
                title="Zero-shot Knowledge Transfer via Adversarial Belief Matching",
                authors="P. Micaelli, A. Storkey",
                venue="NeurIPS",
                year=2019,
                identifier="arXiv:1905.09768",
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
    adv: float = 1.0
    lr_g: float = 1e-3
    latent: int = 256
    width: int = 64
    temperature: float = 1.0

    def __post_init__(self) -> None:
        check_counts(self, "ep_steps", "kd_steps", "g_steps", "synthesis_batch", "latent", "width")
        check_weights(self, "adv")
        positive("lr_g", self.lr_g)
        positive("temperature", self.temperature)

    def generator_loss(self, teacher: Signals, student: Signals) -> dict[str, Tensor]:
        """Return the loss of images from both networks' signals on them."""
        loss = adversarial_loss(student.logits, teacher.logits, temperature=self.temperature)
        return {"loss": self.adv * loss, "adv": loss.detach()}
