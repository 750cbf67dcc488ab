"""What the offline task drives: a method with its adapters, its signals and its weight presets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor, nn

from stillroom.cards import Card
from stillroom.data.batch import Batch
from stillroom.models.signals import Signals, TapPaths

__all__ = ["DryRun", "Method", "Weights"]

Signal = Literal["stages", "preact", "pooled"]
Convention = Literal["simkd", "crd"]


@dataclass(frozen=True)
class Weights:
    """Weights of the objective ``L = ce · CE + kd · KD + method · own term``.

    ``KD`` is the classical temperature-scaled term (temperature 4 unless set); a weight of exactly 0 leaves its
    term out of the sum.
    """

    ce: float
    kd: float
    method: float


@dataclass(frozen=True, kw_only=True)
class DryRun:
    """One forward pass of both networks on a sample batch, from which adapters are sized."""

    student: Signals
    teacher: Signals
    teacher_classifier: nn.Linear | None  # the teacher's last linear layer, when it has one
    train_target: Tensor  # [N] int64, classes of all training samples (contrastive methods draw negatives by it)
    num_classes: int
    batch_size: int  # per process
    seed: int


class Method(nn.Module):
    """Base of the offline methods: hyperparameters in the constructor, adapters in :meth:`build`.

    A subclass states its ``card``, the ``signals`` it reads beyond the logits, and its weights under both conventions
    of the literature: ``simkd`` (SimKD and SemCKD repositories: CE + KD + b · feature) and ``crd`` (CRD benchmark,
    mdistiller and HKD repositories).
    """

    card: ClassVar[Card]
    signals: ClassVar[frozenset[Signal]] = frozenset()
    presets: ClassVar[dict[Convention, Weights]]
    warmup_epochs: int = 0  # the own term is scaled by min(epoch / warmup_epochs, 1), epochs counted from 1

    def build(self, dry_run: DryRun) -> None:
        """Create the trainable adapters. Called once, before training; most logit methods need none.

        Raises:
            InputError: The method cannot work for this pair; the message says why.
        """

    def forward(self, student: Signals, teacher: Signals, batch: Batch) -> dict[str, Tensor]:
        """Return ``{"loss": own term, ...}``; the other entries are detached scalar parts for the log."""
        raise NotImplementedError(f"{type(self).__name__} must define forward")

    def predict(self, student: Signals) -> Tensor:
        """Return the logits [B, K] the deployed model answers with (SimKD answers through the teacher's classifier)."""
        return student.logits

    def deploy(self, student: nn.Module, taps: TapPaths, sample: Tensor) -> nn.Module:
        """Return what is deployed after training: the student itself, unless the method answers through more.

        Args:
            student: The trained student.
            taps: Where it was tapped.
            sample: Images [B, C, H, W] on the student's device, for a dry run.
        """
        return student
