"""CMI: contrastive model inversion, whose images must differ from each other and from those made before."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stillroom.cards import Card, Paper
from stillroom.distillation.data_free._checks import check_bank, check_counts, check_weights
from stillroom.distillation.data_free.bn_statistics import BNStatistics
from stillroom.distillation.data_free.inversion import Answer, Look, Made, Scene, from_generator, synthesis_loss
from stillroom.losses.checks import full_precision, positive

__all__ = ["CMI", "FeatureMemory", "ProjectionHead", "cmi_loss", "contrastive_loss"]


class ProjectionHead(nn.Module):
    """Two linear layers from the features of a view to a unit vector.

    Args:
        features: d, width of the features.
        size: Width of the projection.
    """

    def __init__(self, features: int, size: int = 256) -> None:
        super().__init__()
        self.head = nn.Sequential(nn.Linear(features, features), nn.ReLU(), nn.Linear(features, size))

    def forward(self, features: Tensor) -> Tensor:
        return F.normalize(full_precision(self.head(features)), dim=1)


def contrastive_loss(
    head: nn.Module, local: Tensor, whole: Tensor, memory: Tensor | None = None, *, temperature: float = 0.2
) -> Tensor:
    """Return the loss that tells every image from all others, those of earlier rounds included.

    G. Fang et al., "Contrastive Model Inversion for Data-Free Knowledge Distillation", IJCAI 2021:
    ``ℓ = CE_row(p(local) · sg[p(global)]ᵀ / τ, diagonal)`` over the B present images and N' of the memory;
    ``mean(ℓ[:B]) + mean(ℓ[B:])``, or ``mean(ℓ)`` without a memory.

    Args:
        head: p, to unit vectors.
        local: Features of a random window of each image.
        whole: Features of the whole image.
        memory: Rows ``[local | global]`` of earlier images.
        temperature: τ.

    Shapes:
        local, whole: [B, d]. memory: [N', 2 d].

    Returns:
        A scalar.
    """
    count = len(local)
    if memory is not None and len(memory):
        kept_local, kept_whole = memory.chunk(2, dim=1)
        local, whole = torch.cat((local, kept_local)), torch.cat((whole, kept_whole))
    similarity = head(local) @ head(whole).detach().T / temperature
    each = F.cross_entropy(similarity, torch.arange(len(similarity), device=similarity.device), reduction="none")
    return each.mean() if len(each) == count else each[:count].mean() + each[count:].mean()


class FeatureMemory:
    """A ring of feature rows: the newest replace the oldest, and only rows that were written are drawn.

    Args:
        data: The rows to start with, changed in place; their values are never drawn.

    Shapes:
        data: [size, d].

    Example:
        >>> memory = FeatureMemory(torch.zeros(3, 1))
        >>> memory.add(torch.ones(2, 1))
        >>> memory.add(torch.full((2, 1), 2.0))
        >>> memory.data.flatten().tolist(), memory.pointer
        ([2.0, 1.0, 2.0], 1)
    """

    def __init__(self, data: Tensor) -> None:
        self.data = data
        self.pointer = 0
        self.updates = 0

    def __len__(self) -> int:
        """Count the rows that were written."""
        return self._filled

    @property
    def _filled(self) -> int:
        return min(self.updates, len(self.data))

    def add(self, rows: Tensor) -> None:
        """Write rows [n, d] over the oldest ones; a batch is split where the ring closes."""
        if not len(rows):
            return
        places = (self.pointer + torch.arange(len(rows), device=rows.device)) % len(self.data)
        # Of more rows than the ring holds the last ones stay.
        kept = slice(max(0, len(rows) - len(self.data)), None)
        self.data[places[kept]] = rows.detach()[kept]
        self.pointer = (self.pointer + len(rows)) % len(self.data)
        self.updates += len(rows)

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Return up to ``count`` different rows [n, d]."""
        chosen = torch.randperm(self._filled, generator=generator)[:count]
        return self.data[chosen.to(self.data.device)]


def cmi_loss(
    whole: Tensor,
    window: Tensor,
    target: Tensor,
    teacher: Answer,
    statistics: BNStatistics,
    student: Look,
    head: nn.Module,
    memory: Tensor | None = None,
    *,
    bn: float = 1.0,
    oh: float = 1.0,
    adv: float = 0.5,
    cr: float = 0.8,
    temperature: float = 0.2,
) -> dict[str, Tensor]:
    """Return the synthesis loss of CMI: that of the whole view, and ``cr`` times :func:`contrastive_loss`.

    G. Fang et al., "Contrastive Model Inversion for Data-Free Knowledge Distillation", IJCAI 2021. The feature of a
    view are the spatial means of the inputs of the teacher's BatchNorm layers.

    Args:
        whole: Normalised view of the whole images.
        window: Normalised view of a part of each.
        target: The classes they are to show.
        teacher: Images to logits.
        statistics: Of the teacher's BatchNorm layers, switched on.
        student: Images to signals.
        head: The projection.
        memory: Rows of earlier images.
        bn: Weight of the statistics.
        oh: Weight of the classes.
        adv: Weight of the decision-adversarial term.
        cr: Weight of the contrastive term.
        temperature: Of the contrastive term.

    Shapes:
        whole, window: [B, C, H, W]. target: [B], int64. memory: [N', 2 d].

    Returns:
        ``loss``, its unweighted parts, and the rows ``features`` [B, 2 d] for the memory, without graph.
    """
    parts = synthesis_loss(whole, target, teacher, statistics, student, bn=bn, oh=oh, adv=adv, only_agreeing=True)
    global_features = statistics.features()
    teacher(window)
    local_features = statistics.features()
    parts["contrastive"] = contrastive_loss(head, local_features, global_features, memory, temperature=temperature)
    parts["loss"] = parts["loss"] + cr * parts["contrastive"]
    parts["features"] = torch.cat((local_features, global_features), dim=1).detach()
    return parts


@dataclass(frozen=True, kw_only=True)
class CMI:
    """Contrastive model inversion.

    As CSD inverts the teacher through a generator that starts anew every round; a contrastive term over the teacher's
    BatchNorm inputs keeps images apart, and an adversarial one looks for images on which student and teacher answer
    alike but not equally sure. The defaults are those of the released code for CIFAR-10.

    Args:
        kd_steps: Student steps a round.
        g_steps: Steps of the synthesis a round.
        synthesis_batch: Images a round.
        bank_rounds: Rounds of images kept on disk; the oldest go first.
        bn: Weight of the BatchNorm statistics.
        oh: Weight of the classes the images are to show.
        adv: Weight of the adversarial term.
        cr: Weight of the contrastive term.
        cr_temperature: Temperature of the contrastive term.
        memory: Rows of the ring of features of earlier images.
        negatives: Rows drawn from it each step.
        head_size: Width of the projection.
        lr_g: Adam's learning rate of generator, latent vectors and projection.
        latent: Size of the generator's latent vectors.
        width: Channels of the generator's last hidden map; its cost grows with the square.
        temperature: T of the student's soft targets.

    Raises:
        InputError: A value is out of its range.
    """

    card: ClassVar[Card] = Card(
        name="cmi",
        summary="Without data: inverts the teacher into images that a contrastive term keeps apart.",
        papers=(
            Paper(
                title="Contrastive Model Inversion for Data-Free Knowledge Distillation",
                authors="G. Fang, J. Song, X. Wang, C. Shen, X. Wang, M. Song",
                venue="IJCAI",
                year=2021,
                identifier="arXiv:2105.08584",
            ),
        ),
        standing="verified",
    )
    warmup_epochs: ClassVar[int] = 0
    uses_labels: ClassVar[bool] = False
    customises: ClassVar[bool] = False
    feature_weight: ClassVar[float] = 0.0
    initial_rounds: ClassVar[int] = 0

    kd_steps: int = 2000
    g_steps: int = 500
    synthesis_batch: int = 200
    bank_rounds: int = 500
    bn: float = 1.0
    oh: float = 1.0
    adv: float = 0.5
    cr: float = 0.8
    cr_temperature: float = 0.2
    memory: int = 40000
    negatives: int = 4096
    head_size: int = 256
    lr_g: float = 1e-3
    latent: int = 256
    width: int = 64
    temperature: float = 20.0

    def __post_init__(self) -> None:
        check_bank(self)
        check_counts(self, "memory", "negatives", "head_size")
        check_weights(self, "bn", "oh", "adv", "cr")
        for name in ("lr_g", "temperature", "cr_temperature"):
            positive(name, getattr(self, name))

    def steps(self, *, initial: bool) -> int:
        """Return the steps of the synthesis in one round."""
        return self.g_steps

    def synthesise(self, scene: Scene, *, initial: bool) -> Made:
        """Make the images of one round; projection and optimiser come from the round before, features from all."""
        device, width = scene.target.device, scene.statistics.width
        head = ProjectionHead(width, self.head_size).to(device)
        adam = torch.optim.Adam(head.parameters(), lr=self.lr_g, betas=(0.5, 0.999))
        if scene.state:
            _restore(head, adam, scene.state)
        rows = torch.cat([torch.empty(0, 2 * width), *scene.earlier()])[-self.memory :]
        ring = FeatureMemory(torch.empty_like(rows).to(device))
        ring.add(rows.to(device))

        def objective(images: Tensor) -> dict[str, Tensor]:
            return cmi_loss(
                scene.views.random(images, scene.generator),
                scene.views.zoomed(images, scene.generator),
                scene.target,
                scene.teacher,
                scene.statistics,
                scene.student,
                head,
                ring.draw(self.negatives, scene.generator),
                bn=self.bn,
                oh=self.oh,
                adv=self.adv,
                cr=self.cr,
                temperature=self.cr_temperature,
            )

        def train_head() -> None:
            adam.step()
            adam.zero_grad(set_to_none=True)

        images, parts = from_generator(
            scene, objective, steps=self.g_steps, lr=self.lr_g, latent=self.latent, width=self.width, also=train_head
        )
        return Made(images, parts, rows=parts["features"], state=_state(head, adam))


def _state(head: nn.Module, adam: torch.optim.Adam) -> dict[str, Tensor]:
    state = {f"head.{name}": value for name, value in head.state_dict().items()}
    for place, moments in adam.state_dict()["state"].items():
        state |= {f"adam.{place}.{name}": value for name, value in moments.items()}
    return state


def _restore(head: nn.Module, adam: torch.optim.Adam, state: Mapping[str, Tensor]) -> None:
    head.load_state_dict({n.removeprefix("head."): value for n, value in state.items() if n.startswith("head.")})
    moments: dict[int, dict[str, Tensor]] = {}
    for name, value in state.items():
        if name.startswith("adam."):
            _, place, moment = name.split(".")
            moments.setdefault(int(place), {})[moment] = value
    adam.load_state_dict({**adam.state_dict(), "state": moments})
