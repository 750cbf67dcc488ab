"""The three small contracts the training loop drives: a task, a loader, a teacher."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

from torch import Tensor
from typing_extensions import TypeVar

from stillroom.data.batch import Batch
from stillroom.models.signals import Signals

__all__ = ["Loader", "Task", "Teacher"]


# A named tuple of tensors with a ``target``: images, unless a field brings batches of its own (nodes of a graph, say).
BatchT_co = TypeVar("BatchT_co", bound=tuple[Any, ...], covariant=True, default=Batch)


class Task(Protocol):
    """What is trained: an ``nn.Module`` that owns the student and every trainable adapter, but not the teacher."""

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return ``loss`` (scalar with graph), ``output`` (logits [B, K]) and detached scalar parts for the log."""

    def predict(self, images: Tensor) -> Tensor:
        """Return the logits [B, K] of the model that will be deployed."""

    def start_epoch(self, epoch: int) -> None:
        """Be told the epoch (counted from 1) before its first step."""


class Loader(Protocol[BatchT_co]):
    """Batches of one data set, reproducible per epoch and index."""

    def __len__(self) -> int:
        """Steps per epoch (of this process)."""

    def epoch(self, number: int, start: int = 0) -> Iterator[BatchT_co]:
        """Yield the batches of epoch ``number`` (counted from 1), from step ``start`` on, always the same ones."""


class Teacher(Protocol):
    """A source of signals: a live frozen network or a cache of what it said."""

    def signals(self, batch: Batch) -> Signals:
        """Return the teacher's signals for the batch, without graph."""

    def start_epoch(self, epoch: int) -> None:
        """Be told the epoch (counted from 1) before its first step (a cache of several views turns to the next)."""
