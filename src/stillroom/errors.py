"""Errors said in one clear line: what a user can mend (exit code 2) and what failed on the way (exit code 1)."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = [
    "FailureError",
    "InputError",
    "MissingExtraError",
    "OutputError",
    "TrainingDivergedError",
    "nearest",
    "unknown_name",
]


class InputError(ValueError):
    """What the user handed over is wrong; the message names the thing and the mend, in one line."""


class MissingExtraError(InputError):
    """A package of an optional extra is needed and absent."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"{package} is not installed; it comes with: pip install 'stillroom[{extra}]'")


class FailureError(RuntimeError):
    """The input was fine and the work still failed; the message says in one line what to do (exit code 1)."""


class OutputError(FailureError):
    """A result could not be written (a full disk, say); what was written before is intact."""


class TrainingDivergedError(FailureError):
    """The loss became NaN or infinite."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ``; did you mean 'x'?`` for the closest known name, or an empty string."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""


def unknown_name(kind: str, name: str, known: Iterable[str]) -> InputError:
    """Build the error for a name that is not in a table, with the nearest known one.

    Example:
        >>> print(unknown_name("method", "simdk", ["kd", "simkd"]))
        unknown method 'simdk'; did you mean 'simkd'?
    """
    known = sorted(known)
    hint = nearest(name, known) or f"; known: {', '.join(known)}"
    return InputError(f"unknown {kind} {name!r}{hint}")
