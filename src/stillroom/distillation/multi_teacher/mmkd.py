"""MMKD: two small networks learn, by a bilevel step, how much each teacher counts for each sample."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stillroom.cards import Card, Paper, Quirk
from stillroom.distillation.multi_teacher._method import DryRun, ManyTeachers, aligner, mean_weights, squared_error
from stillroom.distillation.multi_teacher.weights import combine, stack_logits, weighted_kl
from stillroom.distillation.offline._align import pool_larger, require_stages, side
from stillroom.distillation.offline._method import Signal
from stillroom.errors import InputError
from stillroom.losses.checks import full_precision, not_negative, positive
from stillroom.losses.weighted import weighted_sum
from stillroom.models.signals import Signals

__all__ = ["MMKD", "FeatureWeights", "LogitWeights", "MatchFeatures", "Matched", "Matching", "gram_rows"]


class _WeightNetwork(nn.Module):
    """Linear, ReLU, linear, softmax over the teachers."""

    def __init__(self, inputs: int, teachers: int, factor: int) -> None:
        super().__init__()
        self.inputs = inputs
        self.hidden = nn.Linear(inputs, max(inputs // factor, 1))
        self.output = nn.Linear(max(inputs // factor, 1), teachers)

    def _weights(self, features: Tensor) -> Tensor:
        return F.softmax(full_precision(self.output(F.relu(self.hidden(features)))), dim=1)


class LogitWeights(_WeightNetwork):
    """Weights of the teachers' logits, learned from all logits.

    Args:
        classes: C.
        teachers: K.
        factor: The hidden layer has ``C · (K + 1) // factor`` units.

    Shapes:
        student [B, C] (no gradient flows to it), teachers [K, B, C] -> [B, K].

    Example:
        >>> LogitWeights(10, 3)(torch.zeros(4, 10), torch.zeros(3, 4, 10)).shape
        torch.Size([4, 3])
    """

    def __init__(self, classes: int, teachers: int, factor: int = 2) -> None:
        super().__init__(classes * (teachers + 1), teachers, factor)

    def forward(self, student: Tensor, teachers: Tensor | Sequence[Tensor]) -> Tensor:
        """Return the weights."""
        stacked = stack_logits(teachers)
        return self._weights(torch.cat((*stacked.unbind(), full_precision(student.detach())), dim=1))


class FeatureWeights(_WeightNetwork):
    """Weights of the teachers' maps, learned from the similarities within the batch.

    Row b of the input holds the inner products of sample b with all samples, once by every teacher's map and once by
    the student's. The first layer fixes the batch size.

    Args:
        batch_size: B.
        teachers: K.
        factor: The hidden layer has ``B · (K + 1) // factor`` units.

    Shapes:
        student [B, C_S, h, h] (no gradient flows to it), teachers[k] [B, C_k, h_k, h_k] -> [B, K].
    """

    def __init__(self, batch_size: int, teachers: int, factor: int = 2, *, normalize_gram: bool = False) -> None:
        super().__init__(batch_size * (teachers + 1), teachers, factor)
        self.batch_size, self.normalize_gram = batch_size, normalize_gram

    def forward(self, student: Tensor, teachers: Sequence[Tensor]) -> Tensor:
        """Return the weights."""
        if student.shape[0] != self.batch_size:
            raise InputError(
                f"mmkd's feature weights are made for batches of {self.batch_size}, not {student.shape[0]}; drop the "
                "incomplete batch or train with that batch size"
            )
        maps = (*teachers, student)
        return self._weights(torch.cat([gram_rows(value, normalize=self.normalize_gram) for value in maps], dim=1))


def gram_rows(feature_map: Tensor, *, normalize: bool = False) -> Tensor:
    """Return the inner products [B, B] of a batch's flattened maps; no gradient flows to them.

    Args:
        feature_map: [B, C, H, W].
        normalize: Divide them by the number of features.
    """
    flat = full_precision(feature_map.detach()).flatten(1)
    return flat @ flat.T / flat.shape[1] if normalize else flat @ flat.T


class MatchFeatures(nn.Module):
    """Errors between the student's aligned map and every teacher's without the weights.

    The larger map of a pair is pooled to the smaller one's size; the aligner stands behind the student's.

    Args:
        student_channels: Channels of the student's map.
        teacher_channels: Channels of every teacher's.

    Shapes:
        student [B, C_S, h, h], teachers[k] [B, C_k, h_k, h_k] (no gradient flows to them) -> [B, K].
    """

    def __init__(self, student_channels: int, teacher_channels: Sequence[int]) -> None:
        super().__init__()
        self.regressor = nn.ModuleList(aligner(student_channels, channels) for channels in teacher_channels)

    def forward(self, student: Tensor, teachers: Sequence[Tensor]) -> Tensor:
        """Return the mean squared error of every sample and teacher."""
        pairs = [pool_larger(student, teacher) for teacher in teachers]
        aligned = [regressor(own) for regressor, (own, _) in zip(self.regressor, pairs, strict=True)]
        return squared_error(aligned, [teacher for _, teacher in pairs])


class Matched(NamedTuple):
    """What :class:`Matching` computes."""

    kd: Tensor
    feature: Tensor
    logit_weights: Tensor  # [B, K]
    feature_weights: Tensor  # [B, K]


class Matching(nn.Module):
    """The two matching losses with the networks that weigh them, and the aligners.

    Args:
        student: Signals of the student on a sample batch.
        teachers: Signals of the teachers on it.
        temperature: T of the logit loss, in which the weights sum to 1 and nothing is divided by K.
        factor: Of the weight networks' hidden layers.
        normalize_gram: See :func:`gram_rows`.
    """

    def __init__(
        self,
        student: Signals,
        teachers: Sequence[Signals],
        *,
        temperature: float,
        factor: int = 2,
        normalize_gram: bool = False,
    ) -> None:
        super().__init__()
        self.temperature = temperature
        batch_size, classes = student.logits.shape
        self.match = MatchFeatures(student.stages[-1].shape[1], [t.stages[-1].shape[1] for t in teachers])
        self.logit_weight = LogitWeights(classes, len(teachers), factor)
        self.feature_weight = FeatureWeights(batch_size, len(teachers), factor, normalize_gram=normalize_gram)

    def forward(self, student: Signals, teachers: Sequence[Signals]) -> Matched:
        """Return both losses and the weights."""
        logits, maps = stack_logits([t.logits for t in teachers]), [t.stages[-1] for t in teachers]
        by_logits = self.logit_weight(student.logits, logits)
        by_features = self.feature_weight(student.stages[-1], maps)
        return Matched(
            weighted_kl(student.logits, logits, by_logits, temperature=self.temperature),
            combine(self.match(student.stages[-1], maps), by_features, "sum"),
            by_logits,
            by_features,
        )


class MMKD(ManyTeachers):
    """Adaptive multi-teacher distillation with meta-learning.

    Student and aligners follow ``L_in = CE + KD + beta · L_F`` with the weights of the two networks. Every
    ``meta_freq`` steps these are trained by one step of Adam on the cross-entropy the student would have on hard
    samples after ``inner_steps`` updates on ``alpha · KD + beta · L_F`` and one on the cross-entropy, differentiated
    through all of them; student, momentum and statistics stay as they were.

    Args:
        temperature: T, softens all distributions.
        alpha: Weight of the logit loss in the inner updates of the meta step.
        beta: Weight of the feature loss.
        meta_lr: Learning rate of the weight networks.
        meta_weight_decay: Weight decay of the weight networks.
        meta_freq: Steps from one meta step to the next; the last step of an epoch has one too.
        inner_steps: Updates on the matching losses within a meta step.
        buffer_size: Hard samples to draw the meta batches from, a multiple of the batch size.
        factor: The weight networks' hidden layers are so many times narrower than their input.
        normalize_gram: Divide the inner products the feature weights are learned from by the number of features.
    """

    card: ClassVar[Card] = Card(
        name="mmkd",
        summary="Learns, by a bilevel step on hard samples, a network that weighs the teachers for each sample.",
        papers=(
            Paper(
                title="Adaptive Multi-Teacher Knowledge Distillation with Meta-Learning",
                authors="H. Zhang, D. Chen, C. Wang",
                venue="ICME",
                year=2023,
                identifier="arXiv:2306.06634",
            ),
        ),
        standing="verified",
        ledger=(
            Quirk(
                paper="The weights of cross-entropy and logit loss are hyperparameters of the student's loss too.",
                code="Ignores both there; alpha counts in the meta step only.",
                default="code",
            ),
            Quirk(
                paper="Differentiates through the student's updates.",
                code="Recommends Nesterov's momentum, for which its reverse pass is not exact.",
                default="neither",
                option="",
            ),
            Quirk(
                paper="Similarities within the batch are the input of the feature weights.",
                code="Leaves them unscaled; the softmax is nearly one-hot.",
                default="code",
                option="normalize_gram",
            ),
            Quirk(
                paper="Student and statistics are as before the meta step.",
                code="Restores weights and momentum; running statistics of batch norm have moved.",
                default="paper",
            ),
        ),
    )
    signals: ClassVar[frozenset[Signal]] = frozenset({"stages"})

    matching: Matching

    def __init__(
        self,
        *,
        temperature: float = 4.0,
        alpha: float = 1.0,
        beta: float = 100.0,
        meta_lr: float = 1e-3,
        meta_weight_decay: float = 1e-4,
        meta_freq: int = 5,
        inner_steps: int = 2,
        buffer_size: int = 256,
        factor: int = 2,
        normalize_gram: bool = False,
    ) -> None:
        super().__init__(temperature=temperature, gamma=1.0, alpha=alpha, beta=beta)
        if alpha == beta == 0:
            raise InputError("alpha and beta are both 0; mmkd then has no loss to match the teachers with")
        self.meta_lr = positive("meta_lr", meta_lr)
        self.meta_weight_decay = not_negative("meta_weight_decay", meta_weight_decay)
        numbers = {"meta_freq": meta_freq, "inner_steps": inner_steps, "buffer_size": buffer_size, "factor": factor}
        for name, number in numbers.items():
            if number < 1:
                raise InputError(f"{name} is {number}; it must be at least 1")
        self.meta_freq, self.inner_steps, self.buffer_size, self.factor = meta_freq, inner_steps, buffer_size, factor
        self.normalize_gram = normalize_gram

    def build(self, dry_run: DryRun) -> None:
        """Create aligners and weight networks; the latter are not for the student's optimiser."""
        if self.buffer_size % dry_run.batch_size:
            raise InputError(
                f"method.buffer_size is {self.buffer_size}; it must be a multiple of recipe.batch_size, "
                f"{dry_run.batch_size}"
            )
        for owner, signals in (("student", dry_run.student), *(("teacher", teacher) for teacher in dry_run.teachers)):
            side(require_stages(signals, owner, "mmkd")[-1], owner)
        self.matching = Matching(
            dry_run.student,
            dry_run.teachers,
            temperature=self.temperature,
            factor=self.factor,
            normalize_gram=self.normalize_gram,
        )
        self.matching.logit_weight.requires_grad_(False)
        self.matching.feature_weight.requires_grad_(False)

    def weigh(self, student: Tensor, teachers: Tensor, target: Tensor) -> Tensor:
        """Return the learned weights of the logits."""
        weights: Tensor = self.matching.logit_weight(student, teachers)
        return weights

    def matching_loss(self, matched: Matched) -> Tensor:
        """Return ``alpha · KD + beta · L_F``, what the meta step's inner updates follow."""
        return weighted_sum((self.alpha, matched.kd), (self.beta, matched.feature))

    def forward(self, student: Signals, teachers: Sequence[Signals], target: Tensor) -> dict[str, Tensor]:
        """Return ``CE + KD + beta · L_F`` and its parts."""
        matched: Matched = self.matching(student, teachers)
        cross_entropy = F.cross_entropy(full_precision(student.logits), target)
        return {
            "loss": weighted_sum((1.0, cross_entropy), (1.0, matched.kd), (self.beta, matched.feature)),
            "cross_entropy": cross_entropy.detach(),
            "kd": matched.kd.detach(),
            "feature": matched.feature.detach(),
            **mean_weights("weight", matched.logit_weights),
            **mean_weights("feature_weight", matched.feature_weights),
        }
