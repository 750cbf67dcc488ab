"""Saying less: only the top classes, or probabilities rounded to a few decimals.

F. Tramèr, F. Zhang, A. Juels, M. Reiter, T. Ristenpart, "Stealing Machine Learning Models via Prediction APIs", USENIX
Security 2016.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from stillroom.cards import Card, Paper
from stillroom.defense._perturbed import normalised, perturbed
from stillroom.defense.contracts import Answers, Floats, Queries, softmax
from stillroom.errors import InputError

__all__ = ["Rounding", "TopK", "rounded", "top_k"]

_TRAMER = Paper(
    title="Stealing Machine Learning Models via Prediction APIs",
    authors="F. Tramèr, F. Zhang, A. Juels, M. Reiter, T. Ristenpart",
    venue="USENIX Security",
    year=2016,
    identifier="arXiv:1609.02943",
)


def top_k(probabilities: Floats, k: int = 1) -> Floats:
    """Keep the k highest probabilities of a row, normalised, and set the others to 0; ties keep the first class.

    Shapes:
        probabilities: [B, K]; so is what is returned, one-hot for k = 1.

    Example:
        >>> top_k(np.array([[0.2, 0.6, 0.2]]), 2).tolist()
        [[0.25, 0.7499999999999999, 0.0]]
    """
    order = np.argsort(-probabilities, axis=1, kind="stable")[:, :k]
    kept = np.zeros(probabilities.shape)
    np.put_along_axis(kept, order, np.take_along_axis(probabilities, order, 1), 1)
    return normalised(kept)


def rounded(probabilities: Floats, decimals: int = 2) -> Floats:
    """Round probabilities and normalise them; a row rounded to nothing becomes uniform.

    Shapes:
        probabilities: [B, K]; so is what is returned.

    Example:
        >>> rounded(np.array([[0.004, 0.246, 0.75]]), 1).round(3).tolist()
        [[0.0, 0.2, 0.8]]
    """
    return normalised(np.asarray(np.round(probabilities, decimals), np.float64))


class TopK:
    """Answers with the k best classes only; with ``k = 1`` with nothing but the label.

    Args:
        k: Classes that keep their probability.

    Raises:
        InputError: ``k`` is below 1.
    """

    card: ClassVar[Card] = Card(
        name="top_k",
        summary="Lets out the probabilities of the best classes only, or just the label.",
        papers=(_TRAMER,),
        standing="derived",
    )

    def __init__(self, *, k: int = 1) -> None:
        if k < 1:
            raise InputError(f"k is {k}; at least 1 class must be answered")
        self.k = k

    def answer(self, queries: Queries) -> Answers:
        """Answer one account's consecutive queries."""
        clean = softmax(queries.logits)
        return perturbed(clean, top_k(clean, self.k))


class Rounding:
    """Answers with rounded probabilities.

    Args:
        decimals: Digits after the point.

    Raises:
        InputError: ``decimals`` is below 0.
    """

    card: ClassVar[Card] = Card(
        name="rounding",
        summary="Rounds the probabilities to a few decimals.",
        papers=(_TRAMER,),
        standing="derived",
    )

    def __init__(self, *, decimals: int = 2) -> None:
        if decimals < 0:
            raise InputError(f"decimals is {decimals}; it must be at least 0")
        self.decimals = decimals

    def answer(self, queries: Queries) -> Answers:
        """Answer one account's consecutive queries."""
        clean = softmax(queries.logits)
        return perturbed(clean, rounded(clean, self.decimals))
