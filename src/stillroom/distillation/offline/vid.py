"""VID: variational information distillation."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stillroom.cards import Card, Paper, Quirk
from stillroom.data.batch import Batch
from stillroom.distillation.offline._align import count_pairs, pool_larger, require_stages
from stillroom.distillation.offline._method import Convention, DryRun, Method, Signal, Weights
from stillroom.errors import InputError
from stillroom.losses.checks import full_precision
from stillroom.models.signals import Signals

__all__ = ["VID", "VIDLoss", "vid_loss"]


def vid_loss(mean: Tensor, teacher: Tensor, log_scale: Tensor, *, eps: float = 1e-5) -> Tensor:
    """Negative log-likelihood of the teacher map under a Gaussian with one variance per channel.

    S. Ahn et al., "Variational Information Distillation for Knowledge Transfer", CVPR 2019, without the
    constant: ``mean of ½ [(μ − F_T)² / v + log v]`` with ``v = log(1 + exp(ρ)) + eps``.

    Args:
        mean: The prediction ``μ``.
        teacher: The teacher map ``F_T``; no gradient flows into it.
        log_scale: The trained ``ρ``.
        eps: Smallest variance.

    Shapes:
        mean, teacher: [B, C, H, W].
        log_scale: [C].

    Returns:
        A scalar.

    Example:
        >>> vid_loss(torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 4, 4), torch.full((3,), math.log(math.e - 1)), eps=0.0)
        tensor(0.)
    """
    variance = F.softplus(full_precision(log_scale)) + eps
    # v does not depend on sample and position: average the squares over them first.
    squares = (full_precision(mean) - full_precision(teacher.detach())).square().mean((0, 2, 3))
    return 0.5 * (squares / variance + variance.log()).mean()


class VIDLoss(nn.Module):
    """The term of one pair of stages: a regressor for the mean, a trained variance per channel.

    The regressor is conv1×1(C_S→C_T) – ReLU – conv1×1(C_T→C_T) – ReLU – conv1×1(C_T→C_T) without biases; the larger
    map of the pair is average-pooled to the smaller first.

    Args:
        student_channels: ``C_S``.
        teacher_channels: ``C_T``.
        init_pred_var: Variance at the start.
        eps: Smallest variance.

    Example:
        >>> VIDLoss(4, 8)(torch.ones(2, 4, 8, 8), torch.ones(2, 8, 4, 4)).shape
        torch.Size([])
    """

    def __init__(
        self, student_channels: int, teacher_channels: int, *, init_pred_var: float = 5.0, eps: float = 1e-5
    ) -> None:
        super().__init__()
        if not 0 < eps < init_pred_var:
            raise InputError(f"eps must be positive and below init_pred_var, got {eps} and {init_pred_var}")
        self.eps = eps
        self.conv1 = nn.Conv2d(student_channels, teacher_channels, 1, bias=False)
        self.conv2 = nn.Conv2d(teacher_channels, teacher_channels, 1, bias=False)
        self.conv3 = nn.Conv2d(teacher_channels, teacher_channels, 1, bias=False)
        # The inverse of softplus, so that the variance starts at init_pred_var.
        start = init_pred_var - eps + math.log(-math.expm1(eps - init_pred_var))
        self.log_scale = nn.Parameter(torch.full((teacher_channels,), start))

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        student, teacher = pool_larger(student, teacher)
        mean = self.conv3(F.relu(self.conv2(F.relu(self.conv1(student)))))
        return vid_loss(mean, teacher, self.log_scale, eps=self.eps)


class VID(Method):
    """Variational information distillation: the sum of :class:`VIDLoss` over the stages, paired by index.

    Args:
        init_pred_var: Variance of every channel at the start.
        eps: Smallest variance.
    """

    card: ClassVar[Card] = Card(
        name="vid",
        summary="Maximises a variational bound on the mutual information between the stages of both networks.",
        papers=(
            Paper(
                title="Variational Information Distillation for Knowledge Transfer",
                authors="S. Ahn, S. X. Hu, A. Damianou, N. D. Lawrence, Z. Dai",
                venue="CVPR, 9163–9171",
                year=2019,
                identifier="arXiv:1904.05835",
            ),
        ),
        standing="verified",
        ledger=(
            Quirk(
                paper="The variances are learned.",
                code="mdistiller keeps them in an unregistered list and so never trains them.",
                default="paper",
            ),
            Quirk(
                paper="Stages of both networks correspond.",
                code="Silently truncates to the shorter list of stages.",
                default="neither",  # truncated too, with a warning
            ),
        ),
    )
    signals: ClassVar[frozenset[Signal]] = frozenset({"stages"})
    presets: ClassVar[dict[Convention, Weights]] = {
        "simkd": Weights(ce=1.0, kd=1.0, method=1.0),
        "crd": Weights(ce=1.0, kd=0.0, method=1.0),
    }

    criteria: nn.ModuleList

    def __init__(self, *, init_pred_var: float = 5.0, eps: float = 1e-5) -> None:
        super().__init__()
        if not 0 < eps < init_pred_var:
            raise InputError(f"eps must be positive and below init_pred_var, got {eps} and {init_pred_var}")
        self.init_pred_var = init_pred_var
        self.eps = eps

    def extra_repr(self) -> str:
        """Show the hyperparameters."""
        return f"init_pred_var={self.init_pred_var}, eps={self.eps}"

    def build(self, dry_run: DryRun) -> None:
        """Create one regressor with its variances per pair of stages."""
        student = require_stages(dry_run.student, "student", "vid")
        teacher = require_stages(dry_run.teacher, "teacher", "vid")
        count_pairs(student, teacher, "vid", "deepest")
        self.criteria = nn.ModuleList(
            VIDLoss(x.shape[1], y.shape[1], init_pred_var=self.init_pred_var, eps=self.eps)
            for x, y in zip(student, teacher, strict=False)
        )

    def forward(self, student: Signals, teacher: Signals, batch: Batch) -> dict[str, Tensor]:
        """Return the sum over the stages."""
        pairs = zip(self.criteria, student.stages, teacher.stages, strict=False)
        return {"loss": torch.stack([criterion(x, y) for criterion, x, y in pairs]).sum()}
