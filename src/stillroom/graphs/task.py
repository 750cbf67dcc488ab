"""The training task of a group of students, and what is kept of each at its best epoch."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from stillroom.errors import InputError
from stillroom.graphs.batch import NodeBatch
from stillroom.graphs.online._method import Method, Output
from stillroom.graphs.online.agreement import check_peers
from stillroom.training.contracts import Loader
from stillroom.training.evaluate import evaluation_mode
from stillroom.training.recipe import Recipe

if TYPE_CHECKING:
    from lightning_fabric import Fabric

__all__ = ["GroupTask", "InTurns", "ask"]


def ask(student: nn.Module, x: Tensor, edge_index: Tensor) -> Output:
    """Return what a student says about a graph.

    Args:
        student: Returns ``(logits, hidden)``; its activation function is its method ``activate``, if it has one.

    Raises:
        InputError: It returns something else.
    """
    said = student(x, edge_index)
    fits = isinstance(said, tuple) and len(said) == 2 and isinstance(said[0], Tensor)
    if not (fits and isinstance(said[1], tuple | list) and all(isinstance(each, Tensor) for each in said[1])):
        raise InputError(
            "a student must return (logits, hidden layers), a tensor and a tuple of tensors; "
            f"{type(student).__name__} returned a {type(said).__name__}"
        )
    logits, hidden = said
    activate = getattr(student, "activate", None)
    return Output(logits, tuple(hidden)) if activate is None else Output(logits, tuple(hidden), activate)


class GroupTask(nn.Module):
    """Students that learn together under a method; a task of :func:`stillroom.training.loop.fit`.

    One optimiser does for all: where students learn in turns, and where adversaries learn before the students, those
    who do not learn have no gradient and are passed over, with their weight decay and their state.

    Args:
        students: Modules that map (x, edge_index) to (logits, hidden layers).
        method: Is built from what the students say about ``sample``.
        sample: A batch.
        epochs: Of the whole training.
        multilabel: Whether nodes have several labels.

    Raises:
        InputError: The method cannot work for these students.
    """

    best_score: Tensor
    best_loss: Tensor
    best_epoch: Tensor

    def __init__(
        self, students: Sequence[nn.Module], method: Method, sample: NodeBatch, *, epochs: int, multilabel: bool = False
    ) -> None:
        super().__init__()
        if len(students) < method.fewest:
            raise InputError(
                f"{method.card.name} needs at least {method.fewest} students, not {len(students)}; raise students"
            )
        self.students = nn.ModuleList(students)
        self.method = method
        self.epochs, self.epoch = epochs, 0
        with evaluation_mode(*students):  # so that no batch norm takes the sample into its statistics
            outputs = [ask(student, sample.x, sample.edge_index) for student in students]
            if len(outputs) > 1:
                check_peers([output.logits for output in outputs])
            method.build(outputs, multilabel=multilabel)
        self.best = nn.ModuleList(copy.deepcopy(student).requires_grad_(False) for student in students)
        self.register_buffer("best_score", torch.full((len(students),), float("-inf")))
        self.register_buffer("best_loss", torch.full((len(students),), float("inf")))
        self.register_buffer("best_epoch", torch.zeros(len(students), dtype=torch.int64))

    def start_epoch(self, epoch: int) -> None:
        """Turn to an epoch, counted from 1."""
        self.epoch = epoch
        self.method.start_epoch(epoch, self.epochs)

    def say(self, batch: NodeBatch) -> list[Output]:
        """Return what all students say; where one has its turn, the others answer without gradient."""
        outputs = []
        for m, student in enumerate(self.students):
            with torch.set_grad_enabled(torch.is_grad_enabled() and batch.turn in (None, m)):
                outputs.append(ask(student, batch.x, batch.edge_index))
        return outputs

    def forward(self, batch: NodeBatch) -> dict[str, Tensor]:
        """Return the method's objective and its parts."""
        parts: dict[str, Tensor] = self.method(self.say(batch), batch)
        return parts

    def step(
        self, task: nn.Module, optimizer: Optimizer, batch: NodeBatch, fabric: Fabric, recipe: Recipe
    ) -> dict[str, Tensor]:
        """Do one update: of the method's adversaries, if it has any, then of the students, after one forward pass."""
        with fabric.autocast():
            outputs = self.say(batch)
            adversary = self.method.adversary_loss(outputs, batch)

        def update(loss: Tensor) -> None:
            fabric.backward(loss)
            if recipe.clip_norm is not None:
                fabric.clip_gradients(task, optimizer, max_norm=recipe.clip_norm, error_if_nonfinite=False)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        if adversary is not None:
            update(adversary)
        with fabric.autocast():
            parts: dict[str, Tensor] = self.method(outputs, batch)
        update(parts["loss"])
        return parts if adversary is None else {**parts, "discriminators": adversary.detach()}

    def keep_best(self, scores: Sequence[float], losses: Sequence[float]) -> None:
        """Keep those students that do better on the validation nodes than ever before.

        Args:
            scores: What is to be high, one a student; where it is equal the lower loss decides.
            losses: Their losses on the same nodes.
        """
        # Rounded like what they are compared with: an equal score would else be a little higher, or lower.
        rounded = self.best_score.new_tensor(list(scores)).tolist(), self.best_loss.new_tensor(list(losses)).tolist()
        for m, (score, loss) in enumerate(zip(*rounded, strict=True)):
            before = (float(self.best_score[m]), -float(self.best_loss[m]))
            if (score, -loss) > before:
                self.best[m].load_state_dict(self.students[m].state_dict())
                self.best_score[m], self.best_loss[m], self.best_epoch[m] = score, loss, self.epoch


class InTurns:
    """A loader's epoch once for every student, one after the other.

    Args:
        loader: Batches for all; each student's pass has an order of its own.
        students: How many.
    """

    def __init__(self, loader: Loader[NodeBatch], students: int) -> None:
        self.loader, self.students = loader, students

    def __len__(self) -> int:
        return len(self.loader) * self.students

    def epoch(self, number: int, start: int = 0) -> Iterator[NodeBatch]:
        """Yield the batches of an epoch from a step on."""
        first, skipped = divmod(start, len(self.loader))
        for turn in range(first, self.students):
            passes = (number - 1) * self.students + turn + 1
            for batch in self.loader.epoch(passes, skipped if turn == first else 0):
                yield batch._replace(turn=turn)
