"""Energy: how little the model's logits speak for any class, averaged over an account's last queries."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from stillroom.cards import Card, Paper
from stillroom.defense.contracts import Floats, Queries
from stillroom.defense.windows import Windows
from stillroom.errors import InputError

__all__ = ["Energy", "energies"]


def energies(logits: NDArray[np.floating]) -> Floats:
    """Return ``-log Σ_k exp(o_k)`` of each row: high where the model has seen nothing like it.

    W. Liu, X. Wang, J. Owens, Y. Li, NeurIPS 2020, equation 4 at temperature 1.

    Shapes:
        logits: [B, K]. Returns [B], float64.

    Example:
        >>> energies(np.array([[1000.0, 0.0], [0.0, 0.0]])).round(3).tolist()
        [-1000.0, -0.693]
    """
    values = np.asarray(logits, np.float64)
    highest = values.max(1)
    return np.asarray(-(highest + np.log(np.exp(values - highest[:, None]).sum(1))))


class Energy:
    """The energy detector: scores an account by the mean energy of its last W queries.

    Args:
        windows: Keeps the accounts' energies (one number a query); its ``size`` is W.
        min_queries: Queries an account must have made before it is scored; W when not given.

    Raises:
        InputError: ``min_queries`` lies outside 1..W.
    """

    card: ClassVar[Card] = Card(
        name="energy",
        summary="Recognises a stealing account by the mean energy of its queries' logits.",
        papers=(
            Paper(
                title="Energy-based Out-of-distribution Detection",
                authors="W. Liu, X. Wang, J. Owens, Y. Li",
                venue="NeurIPS",
                year=2020,
                identifier="arXiv:2010.03759",
            ),
        ),
        standing="derived",
    )

    def __init__(self, windows: Windows, *, min_queries: int | None = None) -> None:
        self.windows = windows
        self.min_queries = windows.size if min_queries is None else min_queries
        if not 1 <= self.min_queries <= windows.size:
            raise InputError(f"min_queries is {self.min_queries}; it must lie in 1..{windows.size}, the window")

    def watch(self, queries: Queries) -> Floats:
        """Take in one account's consecutive queries and return their scores [B]; NaN where none is due."""
        own = energies(queries.logits)
        if not np.isfinite(own).all():
            raise InputError("a logit is not finite")
        classes = queries.logits.argmax(1).astype(np.int64)
        window = self.windows.append(queries.account, own[:, None], classes)
        known, before = np.asarray(window.features[:, 0], np.float64), window.total - len(queries)
        scores = np.full(len(queries), np.nan)
        for position in range(len(queries)):
            if before + position + 1 >= self.min_queries:
                end = len(known) - len(queries) + position + 1
                scores[position] = known[max(end - self.windows.size, 0) : end].mean()
        return scores
