"""A fitted guard: what the detector compares with, and the threshold that was calibrated for it, in one file."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from stillroom.defense.add import Reference
from stillroom.defense.calibrate import Calibration, draw_windows
from stillroom.defense.contracts import Floats, Ints
from stillroom.defense.dadd import ADD, DetectAndPoison
from stillroom.defense.linking import Linked
from stillroom.defense.poison import KeyedPoison, Style
from stillroom.defense.windows import Windows
from stillroom.errors import InputError
from stillroom.files import plain, write_bytes_atomic

__all__ = ["FILE", "Guard"]

FILE = "guard.safetensors"
FORMAT = "stillroom-guard-1"
HONEST_WINDOWS = 2000  # drawn to know how far honest accounts deviate


@dataclass(frozen=True)
class Guard:
    """A reference, a window, a threshold, and the one model they belong to.

    Args:
        reference: Class-wise normals of the training features.
        expected: What honest queries have on average, see :func:`~stillroom.defense.expected.fit_expected`; None for
            the paper's score.
        window: W, queries an account is judged by.
        calibration: The threshold and its false-positive rate.
        linked: The same where accounts are also linked: two tests share the false alarms of one.
        held_out: Features of honest queries, to tell what newcomers have in common, see :class:`Linked`.
        held_out_classes: Classes predicted for them.
        weights_sha256: Hash of the model's weights.
        classes: Class names.

    Shapes:
        expected: [C, W + 1]. held_out: [N, d], float32. held_out_classes: [N].
    """

    reference: Reference
    expected: Floats | None
    window: int
    calibration: Calibration
    linked: Calibration
    held_out: NDArray[np.float32]
    held_out_classes: Ints
    weights_sha256: str
    classes: tuple[str, ...]

    @property
    def width(self) -> int:
        """Count the features."""
        return int(self.reference.mean.shape[1])

    @property
    def identity(self) -> str:
        """Name model and window in one short text: evidence of another guard must not be judged by this."""
        return f"{self.weights_sha256[:16]}-{self.window}x{self.width}"

    def defence(
        self, windows: Windows, secret: bytes, *, link: bool = False, poison: Style = "normal"
    ) -> DetectAndPoison:
        """Return the defence over a store of windows.

        Args:
            windows: Keeps the accounts' queries.
            secret: Keys the poison, see :class:`~stillroom.defense.poison.KeyedPoison`.
            link: Also judge accounts by what all newcomers have in common, see
                :class:`~stillroom.defense.linking.Linked`.
            poison: How answers are falsified, see :class:`~stillroom.defense.poison.KeyedPoison`.

        Raises:
            InputError: The store's windows have another size, or the held-out features are too few to link accounts.
        """
        if windows.size != self.window:
            raise InputError(f"the store keeps windows of {windows.size}, the guard was calibrated for {self.window}")
        add = ADD(self.reference, windows, expected=self.expected)
        if not link:
            return DetectAndPoison(add, self.calibration.threshold, KeyedPoison(secret, style=poison))
        drawn = draw_windows(len(self.held_out), self.window, HONEST_WINDOWS, np.random.default_rng(0))
        detector = Linked(add, self.held_out, self.held_out_classes, drawn)
        return DetectAndPoison(detector, self.linked.threshold, KeyedPoison(secret, style=poison))

    def save(self, directory: str | Path) -> Path:
        """Write the file into a directory, atomically, and return its path."""
        about = {
            "format": FORMAT,
            "window": self.window,
            "calibration": asdict(self.calibration),
            "linked": asdict(self.linked),
            "weights_sha256": self.weights_sha256,
            "classes": self.classes,
        }
        tensors: dict[str, NDArray[Any]] = {
            "mean": self.reference.mean,
            "cov": self.reference.cov,
            "held_out": self.held_out,
            "held_out_classes": self.held_out_classes,
        }
        if self.expected is not None:
            tensors["expected"] = self.expected
        file = Path(directory) / FILE
        write_bytes_atomic(file, save(tensors, metadata={"guard": json.dumps(plain(about))}))
        return file

    @classmethod
    def load(cls, directory: str | Path, *, weights_sha256: str | None = None) -> Guard:
        """Read a guard.

        Args:
            directory: Where :meth:`save` put it.
            weights_sha256: Hash of the model that is to be guarded.

        Raises:
            InputError: There is none, it is damaged, or it belongs to another model.
        """
        file = Path(directory) / FILE
        if not file.is_file():
            raise InputError(f"{directory} holds no guard; make one with: stillroom defense fit --model {directory}")
        try:
            with safe_open(file, "np") as opened:
                about = json.loads(opened.metadata()["guard"])
                reference = Reference(opened.get_tensor("mean"), opened.get_tensor("cov"))
                held_out, held_out_classes = opened.get_tensor("held_out"), opened.get_tensor("held_out_classes")
                # The paper's score does without.
                expected = opened.get_tensor("expected") if "expected" in opened.keys() else None  # noqa: SIM118
            if about["format"] != FORMAT:
                raise InputError(f"{file} has format {about['format']!r:.40}, this stillroom reads {FORMAT}")
            guard = cls(
                reference,
                expected,
                int(about["window"]),
                Calibration(**about["calibration"]),
                Calibration(**about["linked"]),
                held_out,
                held_out_classes,
                str(about["weights_sha256"]),
                tuple(about["classes"]),
            )
        except (SafetensorError, KeyError, TypeError, ValueError, OSError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"{file} is damaged ({type(error).__name__}); fit the guard again") from error
        if weights_sha256 is not None and guard.weights_sha256 != weights_sha256:
            raise InputError(f"{file} belongs to a model with other weights; fit a guard for this one")
        return guard
