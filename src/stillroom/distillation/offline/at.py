"""AT: attention transfer."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from stillroom.cards import Card, Paper, Quirk
from stillroom.data.batch import Batch
from stillroom.distillation.offline._align import count_pairs, pool_larger, require_stages
from stillroom.distillation.offline._method import Convention, DryRun, Method, Signal, Weights
from stillroom.errors import InputError
from stillroom.losses.checks import full_precision
from stillroom.models.signals import Signals

__all__ = ["AT", "at_loss", "spatial_attention"]


def spatial_attention(feature_map: Tensor, *, p: int = 2) -> Tensor:
    """Spatial attention of a feature map: ``A(F) = l2(mean_c F^p)`` over positions.

    Shapes:
        feature_map: [B, C, H, W].

    Returns:
        [B, H·W], rows of unit norm (all zero for an all-zero map).

    Example:
        >>> spatial_attention(torch.ones(1, 3, 2, 2))
        tensor([[0.5000, 0.5000, 0.5000, 0.5000]])
    """
    energy = full_precision(feature_map).pow(p).mean(1).flatten(1)
    return F.normalize(energy, dim=1, eps=1e-12)


def at_loss(student: Tensor, teacher: Tensor, *, p: int = 2) -> Tensor:
    """Mean squared difference of the spatial attentions of one pair of stages.

    S. Zagoruyko, N. Komodakis, "Paying More Attention to Attention: Improving the Performance of Convolutional Neural
    Networks via Attention Transfer", ICLR 2017: ``mean over B·H·W of (A(F_S) − A(F_T))²``, the larger map
    average-pooled to the smaller before ``A``.

    Args:
        student: A student map.
        teacher: A teacher map; no gradient flows into it.
        p: Power of the activations.

    Shapes:
        student: [B, C_S, h, h].
        teacher: [B, C_T, h', h'].

    Returns:
        A scalar.

    Example:
        >>> at_loss(torch.ones(1, 3, 4, 4), torch.ones(1, 8, 2, 2))
        tensor(0.)
    """
    student, teacher = pool_larger(student, teacher.detach())
    return F.mse_loss(spatial_attention(student, p=p), spatial_attention(teacher, p=p))


class AT(Method):
    """Attention transfer: the sum of :func:`at_loss` over the stages, paired by index.

    Args:
        p: Power of the activations.
    """

    card: ClassVar[Card] = Card(
        name="at",
        summary="Matches where the stages of both networks are active.",
        papers=(
            Paper(
                title="Paying More Attention to Attention: Improving the Performance of Convolutional Neural Networks "
                "via Attention Transfer",
                authors="S. Zagoruyko, N. Komodakis",
                venue="ICLR",
                year=2017,
                identifier="arXiv:1612.03928",
            ),
        ),
        standing="verified",
        ledger=(
            Quirk(
                paper="Stages of both networks correspond.",
                code="Silently truncates to the shorter list of stages.",
                default="neither",  # truncated too, with a warning
            ),
            Quirk(
                paper="The norm of the difference of attentions, per pair.",
                code="The mean over batch and positions of its square.",
                default="code",
            ),
        ),
    )
    signals: ClassVar[frozenset[Signal]] = frozenset({"stages"})
    presets: ClassVar[dict[Convention, Weights]] = {
        "simkd": Weights(ce=1.0, kd=1.0, method=1000.0),
        "crd": Weights(ce=1.0, kd=0.0, method=1000.0),
    }

    def __init__(self, *, p: int = 2) -> None:
        super().__init__()
        if p < 1:
            raise InputError(f"p must be at least 1, got {p}")
        self.p = p

    def extra_repr(self) -> str:
        """Show the hyperparameters."""
        return f"p={self.p}"

    def build(self, dry_run: DryRun) -> None:
        """Check the maps and warn if stages stay unpaired."""
        student = require_stages(dry_run.student, "student", "at")
        teacher = require_stages(dry_run.teacher, "teacher", "at")
        count_pairs(student, teacher, "at", "deepest")

    def forward(self, student: Signals, teacher: Signals, batch: Batch) -> dict[str, Tensor]:
        """Return the sum over the stages."""
        losses = [at_loss(x, y, p=self.p) for x, y in zip(student.stages, teacher.stages, strict=False)]
        return {"loss": torch.stack(losses).sum()}
