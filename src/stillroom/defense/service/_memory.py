"""What a store on disk holds in memory: the windows of the accounts that asked last, and notes not yet written."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from stillroom.defense.windows import Window

__all__ = ["HotWindow", "HotWindows", "Note"]


@dataclass(frozen=True)
class HotWindow:
    """A window, and the number of its account in the database."""

    number: int
    window: Window

    @property
    def weight(self) -> int:
        """Bytes it takes, with what Python adds."""
        return self.window.features.nbytes + self.window.classes.nbytes + 600


class HotWindows:
    """Windows of the accounts that asked last, up to so many bytes."""

    def __init__(self, most: int) -> None:
        self.most, self.weight = most, 0
        self._known: OrderedDict[str, HotWindow] = OrderedDict()

    def __len__(self) -> int:
        """Count the windows."""
        return len(self._known)

    def get(self, account: str) -> HotWindow | None:
        """Return the window of an account, if it is here."""
        return self._known.get(account)

    def put(self, account: str, hot: HotWindow) -> None:
        """Keep a window; the accounts that have been silent longest leave for it."""
        self.drop(account)
        self._known[account] = hot
        self.weight += hot.weight
        while self.weight > self.most:
            self.drop(next(iter(self._known)))

    def drop(self, account: str) -> None:
        """Forget a window."""
        hot = self._known.pop(account, None)
        if hot is not None:
            self.weight -= hot.weight

    def clear(self) -> None:
        """Forget all of them."""
        self._known.clear()
        self.weight = 0


@dataclass(frozen=True)
class Note:
    """What is to be added to an account's row."""

    first: float  # seconds since the epoch
    last: float
    queries: int = 0
    poisoned: int = 0
    score: float | None = None  # the latest
    highest: float | None = None

    def then(self, later: Note) -> Note:
        """Return both as one."""
        tops = [top for top in (self.highest, later.highest) if top is not None]
        return Note(
            min(self.first, later.first),
            max(self.last, later.last),
            self.queries + later.queries,
            self.poisoned + later.poisoned,
            self.score if later.score is None else later.score,
            max(tops, default=None),
        )
