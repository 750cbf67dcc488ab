"""What the multi-teacher methods share: weights per sample and teacher, and the objective they stand in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stillroom.cards import Card
from stillroom.distillation.multi_teacher.weights import Reduction, stack_logits, weighted_kl
from stillroom.distillation.offline._method import Signal
from stillroom.losses.checks import check_target, full_precision, not_negative, positive
from stillroom.losses.weighted import weighted_sum
from stillroom.models.signals import Signals

__all__ = ["DryRun", "ManyTeachers", "aligner", "mean_weights", "squared_error"]


@dataclass(frozen=True, kw_only=True)
class DryRun:
    """One forward pass of all networks on a sample batch, from which adapters are sized."""

    student: Signals
    teachers: Sequence[Signals]
    heads: Sequence[nn.Module | None]  # map -> logits of each teacher, for the methods that need them
    batch_size: int  # per process


class ManyTeachers(nn.Module):
    """Base of the multi-teacher methods: ``L = gamma · CE + alpha · KD + beta · feature term``.

    A subclass states its ``card``, the ``signals`` it reads beyond the logits, whether it ``needs_heads`` of the
    teachers (feature map to logits), and how it weighs them.
    """

    card: ClassVar[Card]
    signals: ClassVar[frozenset[Signal]] = frozenset()
    needs_heads: ClassVar[bool] = False
    reduction: ClassVar[Reduction] = "sum"  # "mean" divides the distillation term by the number of teachers once more
    warmup_epochs: int = 0

    def __init__(self, *, temperature: float, gamma: float, alpha: float, beta: float = 0.0) -> None:
        super().__init__()
        self.temperature = positive("temperature", temperature)
        self.gamma = not_negative("gamma", gamma)
        self.alpha = not_negative("alpha", alpha)
        self.beta = not_negative("beta", beta)

    def build(self, dry_run: DryRun) -> None:
        """Create the trainable adapters. Called once, before training; methods on logits need none.

        Raises:
            InputError: The method cannot work for these networks; the message says why.
        """

    def start_epoch(self, epoch: int) -> None:
        """Be told the epoch (counted from 1) before its first step."""

    def notes(self, epochs: int) -> tuple[str, ...]:
        """Return sentences the reader of a report on a training of so many epochs must know."""
        return ()

    def weigh(self, student: Tensor, teachers: Tensor, target: Tensor) -> Tensor:
        """Return the weights [B, K] of the teachers' logits [K, B, C] for a student's [B, C]."""
        raise NotImplementedError(f"{type(self).__name__} must define weigh")

    def forward(self, student: Signals, teachers: Sequence[Signals], target: Tensor) -> dict[str, Tensor]:
        """Return ``{"loss": objective, ...}``; the other entries are detached scalar parts for the log.

        Here for methods on logits alone; those that read maps have their own.
        """
        logits = stack_logits([teacher.logits for teacher in teachers])
        weights = self.weigh(student.logits, logits, target)
        kd = weighted_kl(student.logits, logits, weights, temperature=self.temperature, reduction=self.reduction)
        return self.objective(student, target, kd, weights)

    def objective(
        self, student: Signals, target: Tensor, kd: Tensor, weights: Tensor, feature: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Return the weighted sum of the terms, with the terms and each teacher's mean weight as parts."""
        check_target(student.logits, target)
        cross_entropy = F.cross_entropy(full_precision(student.logits), target)
        terms = [(self.gamma, cross_entropy), (self.alpha, kd)]
        parts = {"cross_entropy": cross_entropy.detach(), "kd": kd.detach()}
        if feature is not None:
            terms.append((self.beta, feature))
            parts["feature"] = feature.detach()
        return {"loss": weighted_sum(*terms), **parts, **mean_weights("weight", weights)}


def mean_weights(name: str, weights: Tensor) -> dict[str, Tensor]:
    """Return the mean weight of every teacher over the batch, as ``name_0``, ``name_1``, ..."""
    return {f"{name}_{k}": mean for k, mean in enumerate(weights.detach().mean(0).unbind())}


def aligner(student_channels: int, teacher_channels: int) -> nn.Sequential:
    """Return the 1×1 convolution with batch norm and ReLU that maps a student's map to a teacher's width."""
    conv = nn.Conv2d(student_channels, teacher_channels, 1)
    layers = {"conv": conv, "bn": nn.BatchNorm2d(teacher_channels), "relu": nn.ReLU()}
    aligned = nn.Sequential()
    for name, layer in layers.items():
        aligned.add_module(name, layer)
    return aligned


def squared_error(aligned: Sequence[Tensor], teachers: Sequence[Tensor]) -> Tensor:
    """Return the mean squared error over all but the batch, for every sample and teacher; teachers are detached.

    Shapes:
        aligned[k], teachers[k]: [B, C_k, h_k, w_k]; the result: [B, K].
    """
    pairs = zip(aligned, teachers, strict=True)
    errors = [F.mse_loss(full_precision(a), full_precision(t.detach()), reduction="none") for a, t in pairs]
    return torch.stack([error.flatten(1).mean(1) for error in errors], dim=1)
