"""Ways to look less like a thief: split the queries over accounts, or mix honest ones in."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from stillroom.defense.attacks.target import Ask, BudgetSpent
from stillroom.defense.contracts import Floats, Images, Ints
from stillroom.errors import InputError

__all__ = ["Mixed", "colluding", "disposable"]


def colluding(count: int, *, block: int = 1) -> Callable[[int], str]:
    """Return which of ``count`` accounts makes a query, turn by turn.

    Args:
        count: Accounts that split the queries.
        block: Queries an account makes before it is the next one's turn.

    Raises:
        InputError: One of them is below 1.

    Example:
        >>> [colluding(2, block=2)(query) for query in range(5)]
        ['thief-0', 'thief-0', 'thief-1', 'thief-1', 'thief-0']
    """
    _at_least_one(count=count, block=block)
    return lambda query: f"thief-{query // block % count}"


def disposable(queries: int) -> Callable[[int], str]:
    """Return the account of a query where each account is thrown away after so many: a Sybil attack.

    With W - 1 queries none of the accounts ever fills a window of W.

    Raises:
        InputError: ``queries`` is below 1.

    Example:
        >>> [disposable(2)(query) for query in range(5)]
        ['thief-0', 'thief-0', 'thief-1', 'thief-1', 'thief-2']
    """
    _at_least_one(queries=queries)
    return lambda query: f"thief-{query // queries}"


class Mixed:
    """Asks the attack's queries interleaved, evenly, with honest ones, whose answers are thrown away.

    The honest queries are paid for as well, so that a share s leaves 1 - s of the budget to the attack.

    Args:
        ask: The victim.
        honest: Images from the victim's own distribution; they start over when they are used up.
        share: Of all queries, those that are honest.

    Shapes:
        honest: [N, C, H, W], uint8.

    Raises:
        InputError: The share is not in 0..1 (1 excluded), there are no honest images, or they are not 8-bit.

    Example:
        >>> asked = []
        >>> def ask(images):
        ...     asked.extend(images.ravel().tolist())
        ...     return np.eye(2)[images.ravel()]
        >>> mixed = Mixed(ask, np.zeros((4, 1, 1, 1), np.uint8), 0.5)
        >>> mixed(np.ones((2, 1, 1, 1), np.uint8)).tolist(), asked
        ([[0.0, 1.0], [0.0, 1.0]], [1, 0, 1])
    """

    def __init__(self, ask: Ask, honest: Images, share: float) -> None:
        if not 0 <= share < 1:
            raise InputError(f"the share of honest queries is {share}; it must be at least 0 and below 1")
        if len(honest) == 0 or honest.dtype != np.uint8:
            raise InputError(f"{len(honest)} honest images of type {honest.dtype} to mix in; give 8-bit ones")
        self.ask, self.honest, self.share = ask, honest, share
        self._asked = 0  # queries so far, honest ones included

    def __call__(self, images: Images) -> Floats:
        """Return the answers [B, K] to the attack's images [B, C, H, W].

        Raises:
            BudgetSpent: So many queries, with the honest ones among them, are not left; none was made.
        """
        own = self._places(len(images))
        length = int(own[-1]) + 1 if len(own) else 0
        mixed = np.empty((length, *images.shape[1:]), images.dtype)
        theirs = np.setdiff1d(np.arange(length), own)
        used = int(np.floor(self._asked * self.share))
        honest = self.honest[(used + np.arange(len(theirs))) % len(self.honest)]
        mixed[theirs] = honest if images.dtype == np.uint8 else honest.astype(images.dtype) / 255
        mixed[own] = images
        try:
            answers = self.ask(mixed)
        except BudgetSpent as spent:
            raise BudgetSpent(int((own < spent.left).sum())) from None
        self._asked += length
        return answers[own]

    def _places(self, count: int) -> Ints:
        """Return where ``count`` queries of the attack stand among all queries from now on."""
        queries = self._asked + np.arange(int(count / (1 - self.share)) + 3)
        honest = np.diff(np.floor(queries * self.share)) > 0  # query i is honest when the i + 1-th fills up the share
        return np.flatnonzero(~honest)[:count].astype(np.int64)


def _at_least_one(**values: int) -> None:
    for name, value in values.items():
        if value < 1:
            raise InputError(f"{name} is {value}; it must be at least 1")
