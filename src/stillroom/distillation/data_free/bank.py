"""The memory bank: the synthesised images of every round on disk, bounded, and found again by a resumed run."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor

from stillroom.data.images import TensorImages
from stillroom.errors import InputError
from stillroom.files import output_errors, plain, write_bytes_atomic
from stillroom.training.run import first_difference

__all__ = ["Bank", "Round"]

_STATES = 3  # as many rounds back as the two checkpoints a run keeps can ask for, and the present one


@dataclass(frozen=True)
class Round:
    """One round of synthesis.

    Args:
        images: [N, C, H, W], uint8.
        target: [N], int64, the classes the images were made for.
        parts: Parts of the loss of the synthesis.
        seconds: What this round and all before it took.
        rows: [N, d], what later rounds may ask for; None for most methods.
    """

    images: Tensor
    target: Tensor
    parts: Mapping[str, float]
    seconds: float
    rows: Tensor | None = None


class Bank:
    """The last rounds of images in a folder, one safetensors file each, numbered from 1.

    A round that is there is never made again: a killed run that is resumed finds its images, and the student goes on
    with exactly those it saw.

    Args:
        folder: Where the files lie; it is made with the first one.
        limit: Rounds a student learns from. One more stays on disk, for a resumption from the checkpoint before the
            last.
        identity: What the images depend on, as plain data; files of other ones are refused.
        resume: Whether there may be files.

    Raises:
        InputError: The limit is below 1, or there are files and the run is not a resumed one.
    """

    def __init__(self, folder: Path, *, limit: int, identity: Mapping[str, Any], resume: bool = False) -> None:
        if limit < 1:
            raise InputError(f"bank_rounds is {limit}: a bank without images teaches nothing; give at least 1")
        self.folder = folder
        self.limit = limit
        self.identity = plain(identity)
        self._read: dict[int, Round] = {}
        if not resume and any(folder.glob("*.safetensors")):
            raise InputError(f"{folder} holds images already; resume or name another run")

    def __contains__(self, number: int) -> bool:
        """Say whether a round is there."""
        return self._file("round", number).is_file()

    @property
    def newest(self) -> int:
        """Number of the newest round; 0 when there is none."""
        return max((_number(file) for file in self.folder.glob("round-*.safetensors")), default=0)

    @property
    def num_bytes(self) -> int:
        """Size of all files."""
        return sum(file.stat().st_size for file in self.folder.glob("*.safetensors"))

    def add(self, number: int, made: Round, state: Mapping[str, Tensor]) -> None:
        """Write a round, and what the next one takes up from it; the oldest rounds go.

        Raises:
            OutputError: It cannot be written; the rounds before it are intact.
        """
        with output_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        if state:  # first, so that a round that is there has its state
            self._write(self._file("state", number), state, {})
        # Seconds as a number of fixed length: two runs that differ in nothing else have files of one size.
        seconds = torch.tensor(made.seconds, dtype=torch.float64)
        tensors = {"images": made.images, "target": made.target, "seconds": seconds}
        if made.rows is not None:
            tensors["rows"] = made.rows
        self._write(self._file("round", number), tensors, {"parts": dict(made.parts)})
        with output_errors(self.folder):
            for kind, kept in (("round", self.limit + 1), ("state", _STATES)):
                for file in self.folder.glob(f"{kind}-*.safetensors"):
                    if _number(file) <= number - kept:
                        file.unlink()
            for unfinished in self.folder.glob(".*.tmp"):  # a killed write's
                unfinished.unlink()

    def __getitem__(self, number: int) -> Round:
        """Return a round.

        Raises:
            InputError: It is missing or damaged, or belongs to another run.
        """
        if number not in self._read:
            tensors, about = self._load(self._file("round", number))
            try:
                self._read[number] = Round(
                    tensors["images"], tensors["target"], about["parts"], tensors["seconds"].item(), tensors.get("rows")
                )
            except KeyError as error:
                raise self._damaged(number, error) from error
        return self._read[number]

    def state(self, number: int) -> dict[str, Tensor]:
        """Return what a round handed on; empty where it handed on nothing."""
        file = self._file("state", number)
        return self._load(file)[0] if file.is_file() else {}

    def window(self, number: int) -> range:
        """Return the numbers of the rounds a student learns from when round ``number`` is the newest."""
        return range(max(1, number - self.limit + 1), number + 1)

    def images(self, number: int) -> TensorImages:
        """Return all images of the window that ends with a round.

        Raises:
            InputError: One is missing, or there is none.
        """
        window = self.window(number)
        if not window:
            raise InputError(f"the bank {self.folder} holds no images; give at least one round of synthesis")
        for gone in [key for key in self._read if key < window.start]:
            del self._read[gone]
        rounds = [self[key] for key in window]
        return TensorImages(torch.cat([r.images for r in rounds]), torch.cat([r.target for r in rounds]))

    def rows(self, number: int) -> Sequence[Tensor]:
        """Return the rows of the window that ends with a round, oldest first."""
        return [rows for key in self.window(number) if (rows := self[key].rows) is not None] if number else []

    def _file(self, kind: str, number: int) -> Path:
        return self.folder / f"{kind}-{number:06d}.safetensors"

    def _write(self, file: Path, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
        metadata = {"about": json.dumps({"identity": self.identity, **about})}
        stored = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
        write_bytes_atomic(file, to_bytes(stored, metadata=metadata))

    def _load(self, file: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
        if not file.is_file():
            raise InputError(f"{file} is missing, and the run cannot go on without these images; overwrite the run")
        try:
            with safe_open(file, "pt") as handle:
                about = json.loads((handle.metadata() or {})["about"])
                tensors = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118 - not a dict
        except (SafetensorError, KeyError, ValueError, OSError) as error:
            raise InputError(f"{file} is damaged; remove it and what is newer, or overwrite the run") from error
        difference = first_difference(about.get("identity"), self.identity)
        if difference is not None:
            raise InputError(f"{file} belongs to another training: {difference}")
        return tensors, about

    def _damaged(self, number: int, error: KeyError) -> InputError:
        return InputError(f"{self._file('round', number)} is damaged: it has no {error}; overwrite the run")


def _number(file: Path) -> int:
    return int(file.stem.rpartition("-")[2])
