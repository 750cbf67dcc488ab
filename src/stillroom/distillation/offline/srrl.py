"""SRRL: the teacher's classifier judges the student's representation."""

from __future__ import annotations

import warnings
from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from stillroom.cards import Card, Paper
from stillroom.data.batch import Batch
from stillroom.distillation.offline._align import frozen_linear, pooled_pair
from stillroom.distillation.offline._method import Convention, DryRun, Method, Signal, Weights
from stillroom.errors import InputError
from stillroom.losses.checks import full_precision
from stillroom.models.signals import Signals

__all__ = ["SRRL", "SRRLConnector", "srrl_loss"]


def srrl_loss(connected: Tensor, teacher: Tensor, logits: Tensor, teacher_logits: Tensor) -> tuple[Tensor, Tensor]:
    """Feature matching and softmax regression of the student's representation.

    J. Yang et al., "Knowledge Distillation via Softmax Regression Representation Learning", ICLR 2021:
    ``L_FM = MSE(r, h_T)`` and ``L_SR = MSE(W_T r + b_T, z_T)``; the loss is their sum.

    Args:
        connected: The student's pooled vector behind the connector, ``r``.
        teacher: The teacher's pooled vector ``h_T``; no gradient flows into it.
        logits: What the teacher's frozen classifier answers to ``r``.
        teacher_logits: The teacher's logits ``z_T``; no gradient flows into them.

    Shapes:
        connected, teacher: [B, D].
        logits, teacher_logits: [B, K].

    Returns:
        Both terms, scalars.

    Example:
        >>> import torch
        >>> srrl_loss(torch.ones(2, 4), torch.zeros(2, 4), torch.ones(2, 3), torch.ones(2, 3))
        (tensor(1.), tensor(0.))
    """
    feature = F.mse_loss(full_precision(connected), full_precision(teacher.detach()))
    regression = F.mse_loss(full_precision(logits), full_precision(teacher_logits.detach()))
    return feature, regression


class SRRLConnector(nn.Module):
    """Map pooled student vectors to the teacher's width: a linear layer without bias (a 1×1 convolution), BN, ReLU.

    Args:
        student_width: Entries of the student's vector.
        teacher_width: Entries of the teacher's vector.

    Raises:
        InputError: One sample in training mode, of which batch statistics do not exist.

    Example:
        >>> import torch
        >>> SRRLConnector(4, 8)(torch.ones(2, 4)).shape
        torch.Size([2, 8])
    """

    def __init__(self, student_width: int, teacher_width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(student_width, teacher_width, bias=False)
        self.bn = nn.BatchNorm1d(teacher_width)

    def forward(self, pooled: Tensor) -> Tensor:
        """Return the connected vectors [B, D_T]."""
        if self.training and pooled.shape[0] == 1:
            raise InputError("srrl normalises pooled vectors over the batch and cannot train on a batch of 1")
        return F.relu(self.bn(self.linear(pooled)))


class SRRL(Method):
    """Softmax regression representation learning, the sum of both terms of :func:`srrl_loss`.

    Not to be confused with SimKD: the deployed student keeps its own classifier.
    """

    card: ClassVar[Card] = Card(
        name="srrl",
        summary="Matches the teacher's pooled vector and what its frozen classifier says of the student's.",
        papers=(
            Paper(
                title="Knowledge Distillation via Softmax Regression Representation Learning",
                authors="J. Yang, B. Martinez, A. Bulat, G. Tzimiropoulos",
                venue="ICLR",
                year=2021,
                identifier="openreview:ZzwDy_wiWv",
            ),
        ),
        standing="verified",
    )
    signals: ClassVar[frozenset[Signal]] = frozenset({"pooled"})
    presets: ClassVar[dict[Convention, Weights]] = {
        "simkd": Weights(ce=1.0, kd=1.0, method=1.0),
        "crd": Weights(ce=1.0, kd=1.0, method=1.0),
    }

    connector: SRRLConnector
    classifier: nn.Linear

    def build(self, dry_run: DryRun) -> None:
        """Create the connector and a frozen copy of the teacher's classifier."""
        student, teacher = pooled_pair(dry_run.student, dry_run.teacher, "srrl")
        self.classifier = frozen_linear(dry_run.teacher_classifier, "srrl")
        if self.classifier.out_features != dry_run.teacher.logits.shape[1]:
            raise InputError(
                f"srrl reuses the teacher's classifier, but it answers {self.classifier.out_features} classes and the "
                f"teacher {dry_run.teacher.logits.shape[1]}"
            )
        if bool((teacher < 0).any()):
            warnings.warn(
                "srrl's connector ends in a ReLU, but this teacher's pooled vectors have negative entries, which it "
                "can only approach; expect less than from a teacher with ReLU before its pooling",
                stacklevel=2,
            )
        self.connector = SRRLConnector(student.shape[1], teacher.shape[1])

    def forward(self, student: Signals, teacher: Signals, batch: Batch) -> dict[str, Tensor]:
        """Return the sum of both terms, and each as a part."""
        pooled, teacher_pooled = pooled_pair(student, teacher, "srrl")
        connected = self.connector(pooled)
        feature, regression = srrl_loss(connected, teacher_pooled, self.classifier(connected), teacher.logits)
        return {"loss": feature + regression, "feature": feature.detach(), "regression": regression.detach()}
