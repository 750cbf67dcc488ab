"""The transfer set: what was asked and what was answered, kept so that no query is ever paid for twice."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save
from torch import nn

from stillroom.defense.attacks.target import Ask, BudgetSpent
from stillroom.defense.contracts import Floats, Images
from stillroom.errors import InputError
from stillroom.files import output_errors, write_bytes_atomic

__all__ = ["Recorded", "Stolen", "TransferSet", "ask_within"]


@dataclass(frozen=True, eq=False)
class TransferSet:
    """Images and the victim's answers to them.

    Shapes:
        images: [N, C, H, W], uint8 or float32 in 0..1. answers: [N, K], rows sum to one.

    Example:
        >>> import tempfile
        >>> asked = TransferSet(np.zeros((2, 1, 4, 4), np.uint8), np.eye(2))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     asked.save(Path(folder) / "transfer.safetensors")
        ...     len(TransferSet.load(Path(folder) / "transfer.safetensors"))
        2
    """

    images: Images
    answers: NDArray[np.floating]

    def __post_init__(self) -> None:
        if self.images.ndim != 4 or self.answers.ndim != 2 or len(self.images) != len(self.answers):
            raise InputError(
                f"images of shape {self.images.shape} do not fit answers of shape {self.answers.shape}; "
                "give [N, C, H, W] and [N, K]"
            )

    def __len__(self) -> int:
        """Count the queries."""
        return len(self.answers)

    @classmethod
    def joined(cls, parts: list[TransferSet]) -> TransferSet:
        """Return several sets (at least one) as one."""
        return cls(np.concatenate([part.images for part in parts]), np.concatenate([part.answers for part in parts]))

    def save(self, path: Path) -> None:
        """Write the set as one safetensors file, atomically.

        Raises:
            OutputError: It could not be written.
        """
        tensors = {"images": np.ascontiguousarray(self.images), "answers": np.ascontiguousarray(self.answers)}
        write_bytes_atomic(path, save(tensors))

    @classmethod
    def load(cls, path: Path) -> TransferSet:
        """Read a set.

        Raises:
            InputError: The file is missing, damaged or something else.
        """
        try:
            tensors = load_file(path)
            return cls(tensors["images"], tensors["answers"])
        except FileNotFoundError:
            raise InputError(f"there is no transfer set at {path}") from None
        except (SafetensorError, KeyError):
            raise InputError(f"{path} is no transfer set or is damaged; remove it and attack again") from None


class Stolen(NamedTuple):
    """What an attack brings home.

    ``transfer`` is None for attacks that throw their queries away. ``history`` holds a record an epoch, or one at
    regular shares of the budget for attacks without epochs.
    """

    model: nn.Module
    transfer: TransferSet | None
    history: list[dict[str, Any]]


class Recorded:
    """Writes down every answer before the attack sees it, and answers from what is written after a restart.

    An attack that runs again with the same seed and folder asks the same images in the same order: what the folder
    knows is free, and the first image it does not know is the first one paid for. A kill costs at most the queries of
    the one call under way. Every call becomes one file, so this suits attacks that ask for hundreds of images at a
    time, not data-free ones with millions of queries.

    Args:
        ask: The victim.
        folder: Where the parts lie; created when missing.

    Raises:
        InputError: A part is damaged or missing.
    """

    def __init__(self, ask: Ask, folder: Path) -> None:
        self.ask, self.folder = ask, folder
        with output_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        files = sorted(folder.glob("part-*.safetensors"))
        if files != [self._file(number) for number in range(len(files))]:
            raise InputError(f"a part of the transfer set is missing in {folder}; remove the folder and attack again")
        self._parts = len(files)
        self._known = TransferSet.joined([TransferSet.load(file) for file in files]) if files else None
        self._given = 0  # of the known answers, those this attack asked for again
        self.paid = 0 if self._known is None else len(self._known)

    def __call__(self, images: Images) -> Floats:
        """Return the answers [B, K], from the folder as far as it knows them.

        Raises:
            BudgetSpent: So many queries are not left beyond the known ones; none was made.
            InputError: Other images were asked when the folder was written.
        """
        start = self._given
        known = 0 if self._known is None else min(len(self._known) - start, len(images))
        if self._known is None or known == 0:
            return self._pay(images)
        if not np.array_equal(self._known.images[start : start + known], images[:known]):
            raise InputError(f"the queries in {self.folder} are another attack's; name another folder")
        answers = np.asarray(self._known.answers[start : start + known], np.float64)
        if known < len(images):
            try:
                answers = np.concatenate([answers, self._pay(images[known:])])
            except BudgetSpent as spent:
                raise BudgetSpent(known + spent.left) from None
        self._given += known
        return answers

    def _pay(self, images: Images) -> Floats:
        answers = self.ask(images)
        TransferSet(images, answers).save(self._file(self._parts))
        self._parts += 1
        self.paid += len(images)
        return answers

    def _file(self, number: int) -> Path:
        return self.folder / f"part-{number:06d}.safetensors"


def ask_within(ask: Ask, images: Images) -> TransferSet | None:
    """Ask about the images, or about as many of them as the budget still permits; None when it permits none."""
    try:
        return TransferSet(images, ask(images))
    except BudgetSpent as spent:
        return None if spent.left == 0 else TransferSet(images[: spent.left], ask(images[: spent.left]))
