"""CA-MKD: teachers count, sample by sample, by how well they predict the label, and so do their features."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stillroom.cards import Card, Paper, Quirk
from stillroom.distillation.multi_teacher._method import DryRun, ManyTeachers, aligner, mean_weights, squared_error
from stillroom.distillation.multi_teacher.weights import combine, confidence_weights, stack_logits, weighted_kl
from stillroom.distillation.offline._align import pool_to, require_stages, side
from stillroom.distillation.offline._method import Signal
from stillroom.errors import InputError
from stillroom.models.signals import Signals

__all__ = ["CAMKD", "ConfidentFeatures", "Projected"]

FIRST_EPOCH = 2  # of the feature term


class Projected(NamedTuple):
    """What :class:`ConfidentFeatures` computes on its way."""

    aligned: list[Tensor]  # r_k(resize(F_S)), each [B, C_k, h_k, h_k]
    logits: list[Tensor]  # head_k(aligned[k]), each [B, C]
    weights: Tensor  # [B, K]
    loss: Tensor


class ConfidentFeatures(nn.Module):
    """The feature term of CA-MKD: ``L_F = (1/(B·K)) Σ_b Σ_k v_bk mse(r_k(resize(F_S)), F_k)_b``.

    ``v`` are the confidence weights of the answers teacher k's own head gives to the student's aligned map; gradient
    reaches the student through the error and through ``v``. The map is resized to the teacher's size from the original
    for every teacher: pooled where it is larger, else interpolated.

    Args:
        student_channels: Channels of the student's last map.
        teachers: Channels and side of every teacher's last map.
        heads: Last map to logits of every teacher; frozen, in evaluation mode, and no part of this module's state.
    """

    def __init__(self, student_channels: int, teachers: Sequence[tuple[int, int]], heads: Sequence[nn.Module]) -> None:
        super().__init__()
        self.sizes = tuple(size for _, size in teachers)
        self.embed = nn.ModuleList(aligner(student_channels, channels) for channels, _ in teachers)
        # In a tuple the heads are out of reach of train(), the optimiser and the checkpoint.
        self.heads = tuple(heads)

    def forward(self, student: Tensor, teachers: Sequence[Tensor], target: Tensor) -> Projected:
        """Return the term for the student's map, the teachers' maps and the labels."""
        resized = {size: _resize(student, size) for size in set(self.sizes)}
        aligned = [embed(resized[size]) for embed, size in zip(self.embed, self.sizes, strict=True)]
        logits = [head(feature_map) for head, feature_map in zip(self.heads, aligned, strict=True)]
        weights = confidence_weights(torch.stack(logits), target)
        loss = combine(squared_error(aligned, teachers), weights, "mean")
        return Projected(aligned, logits, weights, loss)


def _resize(feature_map: Tensor, size: int) -> Tensor:
    if feature_map.shape[-1] >= size:
        return pool_to(feature_map, size)
    return F.interpolate(feature_map, size=(size, size), mode="bilinear", align_corners=False)


class CAMKD(ManyTeachers):
    """Confidence-aware multi-teacher distillation.

    ``L = gamma · CE + alpha · (1/(B·K)) Σ_b Σ_k w_bk KL_T(z_S ‖ z_k)_b + beta · L_F`` with
    ``w_bk = (1 − softmax_k(CE(z_k, y))_bk) / (K − 1)``; the feature term ``L_F`` (see :class:`ConfidentFeatures`) joins
    in the second epoch. A single teacher has the weight 1. Not to be confused with EBKD, which does not look at labels.

    Args:
        temperature: T, softens all distributions.
        gamma: Weight of the cross-entropy.
        alpha: Weight of the distillation term.
        beta: Weight of the feature term.
    """

    card: ClassVar[Card] = Card(
        name="camkd",
        summary="Weighs each teacher, sample by sample, by how well it predicts the label, logits and features alike.",
        papers=(
            Paper(
                title="Confidence-Aware Multi-Teacher Knowledge Distillation",
                authors="H. Zhang, D. Chen, C. Wang",
                venue="ICASSP, 4498–4502",
                year=2022,
                identifier="arXiv:2201.00007",
            ),
        ),
        standing="verified",
        ledger=(
            Quirk(
                paper="The weights of a sample sum to 1.",
                code="Divides the weighted sum by the number of teachers once more; the published alpha and beta go "
                "with that.",
                default="code",
            ),
            Quirk(
                paper="The student's map meets each teacher's size.",
                code="Resizes what was resized for the teacher before.",
                default="paper",
            ),
            Quirk(
                paper="Every sample counts.",
                code="Skips batches smaller than the nominal size.",
                default="paper",
            ),
            Quirk(
                paper="The feature term is part of the objective.",
                code="Leaves it out in the first epoch.",
                default="code",
            ),
        ),
    )
    signals: ClassVar[frozenset[Signal]] = frozenset({"stages"})
    needs_heads: ClassVar[bool] = True

    features: ConfidentFeatures

    def __init__(self, *, temperature: float = 4.0, gamma: float = 1.0, alpha: float = 1.0, beta: float = 50.0) -> None:
        super().__init__(temperature=temperature, gamma=gamma, alpha=alpha, beta=beta)
        self.epoch = FIRST_EPOCH

    def build(self, dry_run: DryRun) -> None:
        """Create an aligner for every teacher."""
        student = require_stages(dry_run.student, "student", "camkd")[-1]
        maps = [require_stages(teacher, f"teacher {k}", "camkd")[-1] for k, teacher in enumerate(dry_run.teachers, 1)]
        heads = [head for head in dry_run.heads if head is not None]
        if len(heads) != len(maps):
            raise InputError("camkd judges features by the teachers' own heads, but not every teacher came with one")
        sizes = [(feature_map.shape[1], side(feature_map, "teacher")) for feature_map in maps]
        self.features = ConfidentFeatures(student.shape[1], sizes, heads)

    def start_epoch(self, epoch: int) -> None:
        """Leave the feature term out in the first epoch."""
        self.epoch = epoch

    def notes(self, epochs: int) -> tuple[str, ...]:
        """Say when the training was too short for the feature term."""
        return () if epochs >= FIRST_EPOCH else ("camkd's feature term begins in the second epoch: it took no part.",)

    def weigh(self, student: Tensor, teachers: Tensor, target: Tensor) -> Tensor:
        """Return the weights by confidence in the label."""
        return confidence_weights(teachers, target)

    def forward(self, student: Signals, teachers: Sequence[Signals], target: Tensor) -> dict[str, Tensor]:
        """Return the objective and its parts."""
        logits = stack_logits([teacher.logits for teacher in teachers])
        weights = self.weigh(student.logits, logits, target)
        kd = weighted_kl(student.logits, logits, weights, temperature=self.temperature, reduction="mean")
        if self.epoch < FIRST_EPOCH or self.beta == 0:
            return self.objective(student, target, kd, weights)
        maps = [teacher.stages[-1] for teacher in teachers]
        projected: Projected = self.features(student.stages[-1], maps, target)
        parts = self.objective(student, target, kd, weights, projected.loss)
        return {**parts, **mean_weights("feature_weight", projected.weights)}
