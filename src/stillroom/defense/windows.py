"""The last queries of every account, which is all a window score needs to remember."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from stillroom.defense.contracts import Ints

__all__ = ["MemoryWindows", "Window", "Windows", "extended", "latest"]


class Window(NamedTuple):
    """What an account asked lately: the queries just appended, and up to W - 1 before them, oldest first.

    Shapes:
        features: [m, d]. classes: [m], predicted.
    """

    features: NDArray[np.floating]
    classes: Ints
    total: int  # queries of the account ever, those just appended included


def extended(before: Window | None, features: NDArray[np.floating], classes: Ints, size: int) -> Window:
    """Return the queries just asked after up to W - 1 of those before them.

    Args:
        before: The latest queries so far; None where there are none.
        features: Of the queries just asked.
        classes: Predicted for them.
        size: W, queries a window holds.

    Shapes:
        features: [n, d]. classes: [n].
    """
    if before is None:
        return Window(features, classes, len(classes))
    start = max(len(before.classes) - size + 1, 0)  # of W queries the oldest leaves when one more comes
    return Window(
        np.concatenate([before.features[start:], features]),
        np.concatenate([before.classes[start:], classes]),
        before.total + len(classes),
    )


def latest(window: Window, size: int) -> Window:
    """Return the last W queries, in memory of their own."""
    return Window(window.features[-size:].copy(), window.classes[-size:].copy(), window.total)


class Windows(Protocol):
    """Keeps the last queries of every account; accounts are never mixed."""

    size: int  # W, queries a window holds

    def append(self, account: str, features: NDArray[np.floating], classes: Ints) -> Window:
        """Take in consecutive queries and return them with those before; atomic for each account."""
        ...

    def forget(self, account: str) -> None:
        """Drop what is known of an account."""
        ...


class MemoryWindows:
    """Windows in this process' memory, for experiments; a service keeps its own in a database.

    Args:
        size: W, queries a window holds.
        dtype: What features are kept in.

    Example:
        >>> windows = MemoryWindows(3)
        >>> for step in range(4):
        ...     last = windows.append("a", np.full((1, 2), step, np.float32), np.array([step]))
        >>> last.classes.tolist(), last.total
        ([1, 2, 3], 4)
    """

    def __init__(self, size: int, *, dtype: type[np.floating] = np.float32) -> None:
        self.size, self.dtype = size, dtype
        self._known: dict[str, Window] = {}

    def append(self, account: str, features: NDArray[np.floating], classes: Ints) -> Window:
        """Take in consecutive queries and return them with those before."""
        features, classes = np.asarray(features, self.dtype), np.asarray(classes, np.int64)
        window = extended(self._known.get(account), features, classes, self.size)
        self._known[account] = latest(window, self.size)
        return window

    def forget(self, account: str) -> None:
        """Drop what is known of an account."""
        self._known.pop(account, None)
