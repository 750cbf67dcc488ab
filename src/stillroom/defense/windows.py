"""The last queries of every account, which is all a window score needs to remember."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from stillroom.defense.contracts import Ints

__all__ = ["MemoryWindows", "Window", "Windows"]


class Window(NamedTuple):
    """What an account asked lately: the queries just appended, and up to W - 1 before them, oldest first.

    Shapes:
        features: [m, d]. classes: [m], predicted.
    """

    features: NDArray[np.floating]
    classes: Ints
    total: int  # queries of the account ever, those just appended included


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
        before = self._known.get(account)
        features, classes = np.asarray(features, self.dtype), np.asarray(classes, np.int64)
        if before is None:
            window = Window(features, classes, len(classes))
        else:
            kept = len(before.classes) - self.size + 1  # of W queries the oldest leaves when one more comes
            window = Window(
                np.concatenate([before.features[max(kept, 0) :], features]),
                np.concatenate([before.classes[max(kept, 0) :], classes]),
                before.total + len(classes),
            )
        keep = slice(-self.size, None)
        self._known[account] = Window(window.features[keep].copy(), window.classes[keep].copy(), window.total)
        return window

    def forget(self, account: str) -> None:
        """Drop what is known of an account."""
        self._known.pop(account, None)
