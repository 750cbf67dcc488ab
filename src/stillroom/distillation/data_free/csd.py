"""CSD: synthetic images made hard for the present student by a self-supervised auxiliary task."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from stillroom.cards import Card, Paper, Quirk
from stillroom.distillation.data_free._checks import check_bank, check_weights
from stillroom.distillation.data_free.inversion import Made, Scene, from_generator, synthesis_loss
from stillroom.losses.checks import positive

__all__ = ["CSD"]


@dataclass(frozen=True, kw_only=True)
class CSD:
    """Customised synthetic data for data-free student learning.

    A round makes images from the teacher's BatchNorm statistics and answers, by a generator that starts anew, and turns
    them against the student's error on class × rotation; then the student learns from all images in the bank. An epoch
    of the recipe is a round. The defaults are those of the released code for CIFAR-10.

    Args:
        kd_steps: Student steps a round.
        g_steps: Steps of the synthesis a round.
        initial_rounds: Rounds of synthesis before the student starts, without customisation.
        initial_g_steps: Steps of the synthesis in each of them.
        synthesis_batch: Images a round.
        bank_rounds: Rounds of images kept on disk, the initial ones included; the oldest go first.
        bn: Weight of the BatchNorm statistics.
        oh: Weight of the classes the images are to show.
        csd: Weight of the customisation.
        adv: Weight of the adversarial term that takes its place where csd is 0.
        lr_g: Adam's learning rate of the synthesis.
        latent: Size of the generator's latent vectors.
        width: Channels of the generator's last hidden map; its cost grows with the square.
        temperature: T of the student's soft targets.
        feature_weight: Weight of the last feature map in the student's loss; 0 leaves it out.
        lr_head: SGD's learning rate of the auxiliary head.
        normalize_head: Whether the head's outputs are L2-normalised.

    Raises:
        InputError: A value is out of its range.
    """

    card: ClassVar[Card] = Card(
        name="csd",
        summary="Without data: synthesises images that are hard for the present student's self-supervised task.",
        papers=(
            Paper(
                title="Customizing Synthetic Data for Data-Free Student Learning",
                authors="S. Luo, D. Chen, C. Wang",
                venue="ICME",
                year=2023,
                identifier="arXiv:2307.04542",
            ),
        ),
        standing="verified",
        ledger=(
            Quirk(
                paper="The auxiliary head is trained with cross-entropy on class × rotation.",
                code="Divides the head's outputs by their norm first; the loss can hardly fall below log 4C.",
                default="code",
                option="normalize_head",
            ),
            Quirk(
                paper="The student learns from the teacher.",
                code="Its cross-entropy takes the labels of the synthesis, not the teacher's answers.",
                default="code",
            ),
            Quirk(
                paper="Norms of the differences of BatchNorm statistics.",
                code="At exactly matching statistics their gradient is 0/0.",
                default="neither",
            ),
        ),
    )
    warmup_epochs: ClassVar[int] = 0
    uses_labels: ClassVar[bool] = True

    kd_steps: int = 2000
    g_steps: int = 200
    initial_rounds: int = 400
    initial_g_steps: int = 500
    synthesis_batch: int = 200
    bank_rounds: int = 500
    bn: float = 1.0
    oh: float = 1.0
    csd: float = 10.0
    adv: float = 0.0
    lr_g: float = 1e-3
    latent: int = 256
    width: int = 64
    temperature: float = 20.0
    feature_weight: float = 30.0
    lr_head: float = 0.1
    normalize_head: bool = True

    def __post_init__(self) -> None:
        check_bank(self)
        check_weights(self, "bn", "oh", "csd", "adv", "feature_weight")
        for name in ("lr_g", "temperature", "lr_head"):
            positive(name, getattr(self, name))

    @property
    def customises(self) -> bool:
        """Whether there is an auxiliary head to train."""
        return self.csd > 0

    def steps(self, *, initial: bool) -> int:
        """Return the steps of the synthesis in one round."""
        return self.initial_g_steps if initial else self.g_steps

    def synthesise(self, scene: Scene, *, initial: bool) -> Made:
        """Make the images of one round; an initial one knows no student."""

        def objective(images: Tensor) -> dict[str, Tensor]:
            return synthesis_loss(
                scene.views.random(images, scene.generator),
                scene.target,
                scene.teacher,
                scene.statistics,
                scene.student,
                scene.head,
                bn=self.bn,
                oh=self.oh,
                csd=0.0 if initial else self.csd,
                adv=0.0 if initial else self.adv,
            )

        steps = self.steps(initial=initial)
        return Made(*from_generator(scene, objective, steps=steps, lr=self.lr_g, latent=self.latent, width=self.width))
