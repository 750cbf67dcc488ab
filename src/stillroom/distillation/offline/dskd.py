"""DSKD: shallow student stages learn from the teacher's predictions and last feature map."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stillroom.cards import Card, Paper, Quirk
from stillroom.data.batch import Batch
from stillroom.distillation.offline._align import pool_to, require_stages, side
from stillroom.distillation.offline._method import Convention, DryRun, Method, Signal, Weights
from stillroom.errors import InputError, unknown_name
from stillroom.losses.checks import full_precision, not_negative, positive
from stillroom.losses.kl import kd_loss
from stillroom.models.signals import Signals

__all__ = ["DSKD", "Allocation", "AuxiliaryBranch", "DSKDTerms", "allocate", "dskd_loss"]

Allocation = Literal["proportional", "softmax", "uniform"]


class DSKDTerms(NamedTuple):
    """The shallow loss and what it is made of: a scalar, then one entry per shallow stage."""

    loss: Tensor
    kd: Tensor
    feature: Tensor
    weight: Tensor


def allocate(losses: Tensor, *, allocation: Allocation = "proportional") -> Tensor:
    """Weights of the shallow stages from their losses; constants that sum to 1.

    ``proportional``: ``L_l / Σ_m L_m``; ``softmax``: ``softmax(L)``; ``uniform``: ``1/n``, also taken where the losses
    sum to at most 1e-12.

    Shapes:
        losses: [n], at least 0.

    Example:
        >>> allocate(torch.tensor([1.0, 3.0]))
        tensor([0.2500, 0.7500])
    """
    losses = losses.detach()
    if allocation == "softmax":
        return torch.softmax(losses, dim=0)
    uniform = torch.full_like(losses, 1 / losses.shape[0])
    if allocation == "uniform":
        return uniform
    total = losses.sum()
    return torch.where(total > 1e-12, losses / total.clamp_min(1e-12), uniform)


def dskd_loss(
    logits: Sequence[Tensor],
    maps: Sequence[Tensor],
    teacher_logits: Tensor,
    teacher_map: Tensor,
    *,
    gamma: float = 1.0,
    allocation: Allocation = "proportional",
    temperature: float = 4.0,
) -> DSKDTerms:
    """Supervise shallow stages by the teacher's class predictions and last feature map.

    S. Luo, D. Chen, C. Wang, "Knowledge Distillation with Deep Supervision", arXiv 2202.07846, re-derived from the
    abstract: ``Σ_l w_l L_l`` with ``L_l = KD(z_l, z_T) + γ · MSE(G_l(F_S^l), F_T)`` and ``w`` from :func:`allocate`.

    Args:
        logits: What the auxiliary classifier of each shallow stage says.
        maps: What the adapter of each shallow stage gives.
        teacher_logits: The teacher's logits; no gradient flows into them.
        teacher_map: The teacher's last map; no gradient flows into it.
        gamma: Weight of the feature term.
        allocation: How the stages are balanced.
        temperature: Softens both distributions of the KD term.

    Shapes:
        logits: per stage [B, K].
        maps: per stage [B, C, h, h], the shape of ``teacher_map``.

    Returns:
        The loss, and per stage [n] its KD term, its feature term and its weight (both terms carry their graph).

    Example:
        >>> z, x = torch.zeros(2, 3), torch.ones(2, 4, 2, 2)
        >>> dskd_loss([z, z], [x, x], z, torch.zeros(2, 4, 2, 2)).loss
        tensor(1.)
    """
    target = full_precision(teacher_map.detach())
    kd = torch.stack([kd_loss(z, teacher_logits, temperature=temperature) for z in logits])
    feature = torch.stack([F.mse_loss(full_precision(x), target) for x in maps])
    losses = kd + gamma * feature
    weight = allocate(losses, allocation=allocation)
    return DSKDTerms((weight * losses).sum(), kd, feature, weight)


class AuxiliaryBranch(nn.Module):
    """Adapter and classifier of one shallow stage; training only.

    {conv3×3, stride 2, BN, ReLU} as long as that does not fall below the teacher's size, pooled to it if need be; the
    last convolution gives the teacher's channels and is followed by BN alone, so that signed maps can be met. Then
    global average pooling and a linear classifier.

    Args:
        student_channels: Channels of the student's stage.
        student_size: Its side.
        teacher_channels: Channels of the teacher's last map.
        teacher_size: Its side.
        num_classes: Classes of the classifier.

    Example:
        >>> x, z = AuxiliaryBranch(8, 16, 32, 4, 10)(torch.ones(2, 8, 16, 16))
        >>> x.shape, z.shape
        (torch.Size([2, 32, 4, 4]), torch.Size([2, 10]))
    """

    def __init__(
        self, student_channels: int, student_size: int, teacher_channels: int, teacher_size: int, num_classes: int
    ) -> None:
        super().__init__()
        strides, size = [], student_size
        while (size + 1) // 2 >= teacher_size and size > 1:
            size = (size + 1) // 2
            strides.append(2)
        strides = strides or [1]
        layers: list[nn.Module] = []
        channels = student_channels
        for i, stride in enumerate(strides):
            last = i == len(strides) - 1
            width = teacher_channels if last else min(2 * channels, teacher_channels)
            layers += [nn.Conv2d(channels, width, 3, stride=stride, padding=1, bias=False), nn.BatchNorm2d(width)]
            layers += [] if last else [nn.ReLU(inplace=True)]
            channels = width
        self.adapter = nn.Sequential(*layers)
        self.classifier = nn.Linear(teacher_channels, num_classes)
        self.size = teacher_size

    def forward(self, feature_map: Tensor) -> tuple[Tensor, Tensor]:
        """Return the adapted map [B, C_T, h_T, h_T] and the logits [B, K]."""
        adapted = pool_to(self.adapter(feature_map), self.size)
        return adapted, self.classifier(adapted.mean((2, 3)))


class DSKD(Method):
    """Deeply supervised distillation, re-derived from the abstract; the own term is :func:`dskd_loss`.

    All stages but the last get an auxiliary branch; the last keeps ordinary KD, the ``kd`` weight of the objective
    (``α``; ``β`` is the weight of the own term).

    Args:
        gamma: Weight of the feature term.
        allocation: How the shallow stages are balanced.
        temperature: Softens both distributions of the shallow KD terms.
    """

    card: ClassVar[Card] = Card(
        name="dskd",
        summary="Supervises shallow student stages by the teacher's predictions and last map; re-derived from the "
        "abstract.",
        papers=(
            Paper(
                title="Knowledge Distillation with Deep Supervision",
                authors="S. Luo, D. Chen, C. Wang",
                venue="IJCNN (as the authors' repository states; some lists give ICASSP)",
                year=2023,
                identifier="arXiv:2202.07846",
            ),
        ),
        standing="reconstructed",
        ledger=(
            Quirk(
                paper="A loss-based weight allocation balances the shallow stages; its rule is not in the abstract.",
                code="None released; each stage is weighted by its share of the loss.",
                default="neither",
                option="allocation='softmax' or 'uniform'",
            ),
            Quirk(
                paper="Class predictions and feature maps supervise the shallow stages; branches and weights are not "
                "in the abstract.",
                code="None released; strided convolutions to the teacher's last map and a linear classifier, all "
                "weights 1, temperature 4.",
                default="neither",
                option="gamma, temperature and the weights of the objective",
            ),
        ),
    )
    signals: ClassVar[frozenset[Signal]] = frozenset({"stages"})
    presets: ClassVar[dict[Convention, Weights]] = {
        "simkd": Weights(ce=1.0, kd=1.0, method=1.0),
        "crd": Weights(ce=1.0, kd=1.0, method=1.0),
    }

    branches: nn.ModuleList

    def __init__(
        self, *, gamma: float = 1.0, allocation: Allocation = "proportional", temperature: float = 4.0
    ) -> None:
        super().__init__()
        if allocation not in get_args(Allocation):
            raise unknown_name("allocation", allocation, get_args(Allocation))
        self.gamma = not_negative("gamma", gamma)
        self.allocation: Allocation = allocation
        self.temperature = positive("temperature", temperature)

    def extra_repr(self) -> str:
        """Show the hyperparameters."""
        return f"gamma={self.gamma}, allocation={self.allocation!r}, temperature={self.temperature}"

    def build(self, dry_run: DryRun) -> None:
        """Create one branch per shallow stage."""
        student = require_stages(dry_run.student, "student", "dskd")
        teacher = require_stages(dry_run.teacher, "teacher", "dskd")[-1]
        if len(student) < 2:
            raise InputError("dskd supervises the student's stages before the last, but only one is tapped")
        self.branches = nn.ModuleList(
            AuxiliaryBranch(
                x.shape[1], side(x, "student"), teacher.shape[1], side(teacher, "teacher"), dry_run.num_classes
            )
            for x in student[:-1]
        )

    def forward(self, student: Signals, teacher: Signals, batch: Batch) -> dict[str, Tensor]:
        """Return the weighted shallow loss and the sums of its two kinds of terms."""
        answers = [branch(x) for branch, x in zip(self.branches, student.stages[:-1], strict=True)]
        terms = dskd_loss(
            [logits for _, logits in answers],
            [adapted for adapted, _ in answers],
            teacher.logits,
            teacher.stages[-1],
            gamma=self.gamma,
            allocation=self.allocation,
            temperature=self.temperature,
        )
        return {
            "loss": terms.loss,
            "shallow_kd": (terms.weight * terms.kd).sum().detach(),
            "shallow_feature": (terms.weight * terms.feature).sum().detach(),
        }
