"""What the group task drives: a method with its own modules, and what the students said."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import ClassVar, Literal, NamedTuple, TypeVar

from torch import Tensor, nn

from stillroom.cards import Card
from stillroom.errors import InputError
from stillroom.graphs.batch import NodeBatch
from stillroom.graphs.online.agreement import label_loss, total
from stillroom.hyperparameters import method_options

__all__ = [
    "Compared",
    "Method",
    "Output",
    "compared",
    "equal_depths",
    "label_losses",
    "labelled",
    "learner_of",
    "one_of",
]

Compared = Literal["labelled", "all"]

ChoiceT = TypeVar("ChoiceT", bound=str)


def _as_it_is(hidden: Tensor) -> Tensor:
    return hidden


class Output(NamedTuple):
    """What one student said about a graph.

    Shapes:
        logits: [N, C].
        hidden: The outputs [N, D_l] of its L hidden layers before their activation, the heads of attention
            concatenated.
        activate: The student's activation function.
    """

    logits: Tensor
    hidden: tuple[Tensor, ...]
    activate: Callable[[Tensor], Tensor] = _as_it_is


class Method(nn.Module):
    """Base of the methods: hyperparameters in the constructor, own modules in :meth:`build`.

    A subclass states its ``card``, whether students learn in turns (one pass over the data each, the others answering
    without gradient) or all at once, the fewest students, and whether all students have their first layer in common.
    """

    card: ClassVar[Card]
    in_turns: ClassVar[bool] = False
    fewest: ClassVar[int] = 2
    shares_first_layer: ClassVar[bool] = False
    warmup_epochs: int = 0  # epochs on the labels alone, before students learn from each other
    multilabel: bool = False

    def extra_repr(self) -> str:
        """Show the hyperparameters."""
        return ", ".join(f"{name}={value!r}" for name, value in method_options(self).items())

    def build(self, outputs: Sequence[Output], *, multilabel: bool) -> None:
        """Create the method's own trainable modules from what the students said about a sample batch.

        Raises:
            InputError: The method cannot work for these students; the message says why.
        """
        self.multilabel = multilabel

    def start_epoch(self, epoch: int, epochs: int) -> None:
        """Be told the epoch, counted from 1, and how many there are."""

    def forward(self, outputs: Sequence[Output], batch: NodeBatch) -> dict[str, Tensor]:
        """Return ``{"loss": scalar, ...}``, the objective of all students, or of the one whose turn it is.

        The other entries are detached scalar parts for the log.
        """
        raise NotImplementedError(f"{type(self).__name__} must define forward")

    def adversary_loss(self, outputs: Sequence[Output], batch: NodeBatch) -> Tensor | None:
        """Return the loss of the method's adversaries, which are updated before the students are; ``None`` without."""
        return None

    def adversaries(self) -> Iterator[nn.Parameter]:
        """Return the parameters of the method's adversaries; weight decay does not reach them."""
        return iter(())


def labelled(outputs: Sequence[Output], batch: NodeBatch) -> tuple[list[Tensor], Tensor]:
    """Return every student's logits and the targets of the nodes whose labels count in the batch."""
    logits = [output.logits.index_select(0, batch.labelled) for output in outputs]
    return logits, batch.target.index_select(0, batch.labelled)


def compared(outputs: Sequence[Output], batch: NodeBatch, nodes: Compared) -> list[Tensor]:
    """Return every student's logits of the nodes whose predictions are compared: those with labels, or all."""
    return [output.logits for output in outputs] if nodes == "all" else labelled(outputs, batch)[0]


def label_losses(outputs: Sequence[Output], batch: NodeBatch) -> Tensor:
    """Return the sum of the students' losses on the labels."""
    logits, target = labelled(outputs, batch)
    return total([label_loss(each, target) for each in logits])


def equal_depths(outputs: Sequence[Output], method: str) -> int:
    """Return the number of hidden layers all students have.

    Raises:
        InputError: They have not the same number, or none.
    """
    depths = [len(output.hidden) for output in outputs]
    if len(set(depths)) != 1:
        shown = ", ".join(map(str, depths))
        raise InputError(
            f"{method} pairs the students' layers, so all must have as many hidden layers; these have {shown}"
        )
    if depths[0] == 0:
        raise InputError(f"{method} compares hidden layers and the students have none; give them at least one")
    return depths[0]


def learner_of(batch: NodeBatch, outputs: Sequence[Output], method: str) -> int:
    """Return the student whose turn it is.

    Raises:
        InputError: It is nobody's, or that of a student that is not there.
    """
    if batch.turn is None or not 0 <= batch.turn < len(outputs):
        raise InputError(
            f"{method} trains one student at a time: the batch's turn must be 0 to {len(outputs) - 1}, not "
            f"{batch.turn}; InTurns sets it"
        )
    return batch.turn


def one_of(name: str, value: ChoiceT, known: Sequence[str]) -> ChoiceT:
    """Return ``value`` if it is known.

    Raises:
        InputError: It is not; the message names the option.
    """
    if value not in known:
        raise InputError(f"{name} must be {', '.join(known[:-1])} or {known[-1]}, not {value!r}")
    return value
