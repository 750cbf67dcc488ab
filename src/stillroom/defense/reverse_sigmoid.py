"""Reverse sigmoid: bend the probabilities so that steep and flat parts of the answer surface change places."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from stillroom.cards import Card, Paper, Quirk
from stillroom.defense._perturbed import normalised, perturbed
from stillroom.defense.contracts import Answers, Floats, Queries, softmax
from stillroom.errors import InputError

__all__ = ["ReverseSigmoid", "reverse_sigmoid"]

_EDGE = 1e-9  # probabilities are kept this far from 0 and 1, where the logit is infinite


def reverse_sigmoid(probabilities: Floats, *, beta: float = 1.0, gamma: float = 0.2) -> Floats:
    """Subtract a reversed sigmoid of the log-odds and normalise.

    With ``r(y) = beta (sigmoid(gamma log(y / (1 - y))) - 1/2)`` the answer is ``(y - r(y)) / Σ_k (y_k - r(y_k))``, the
    difference cut to 0..1 first; where all of it was cut away, the answer is uniform. T. Lee, B. Edwards, I. Molloy,
    D. Su, IEEE S&P workshops 2019.

    Args:
        probabilities: The model's own.
        beta: Size of the perturbation.
        gamma: Steepness of the sigmoid.

    Shapes:
        probabilities: [B, K]; so is what is returned.

    Example:
        >>> reverse_sigmoid(np.array([[0.9, 0.1]])).round(3).tolist()
        [[0.792, 0.208]]
    """
    y = np.asarray(probabilities, np.float64).clip(_EDGE, 1 - _EDGE)
    bent = beta * (1 / (1 + ((1 - y) / y) ** gamma) - 0.5)  # the sigmoid of gamma times the logit
    return normalised((y - bent).clip(0, 1))


class ReverseSigmoid:
    """Answers with bent probabilities, which raises very small ones.

    With beta and gamma of at most 1 a top class of more than one half stays on top; a less certain one may lose its
    place to the least likely classes, so check the accuracy honest users see.

    Args:
        beta: Size of the perturbation.
        gamma: Steepness of the sigmoid.

    Raises:
        InputError: One of them is negative or not finite.
    """

    card: ClassVar[Card] = Card(
        name="reverse_sigmoid",
        summary="Bends the probabilities with a reversed sigmoid, which misleads the slope a clone learns from.",
        papers=(
            Paper(
                title="Defending Against Machine Learning Model Stealing Attacks Using Deceptive Perturbations",
                authors="T. Lee, B. Edwards, I. Molloy, D. Su",
                venue="IEEE S&P Workshops",
                year=2019,
                identifier="arXiv:1806.00054",
            ),
        ),
        standing="verified",
        ledger=(
            Quirk(
                paper="y - r(y), normalised",
                code="no guard at probabilities of 0 and 1, nor against a negative difference or a sum of zero",
                default="neither",
            ),
        ),
    )

    def __init__(self, *, beta: float = 1.0, gamma: float = 0.2) -> None:
        for name, value in (("beta", beta), ("gamma", gamma)):
            if not 0 <= value < np.inf:
                raise InputError(f"{name} is {value}; it must be finite and at least 0")
        self.beta, self.gamma = beta, gamma

    def answer(self, queries: Queries) -> Answers:
        """Answer one account's consecutive queries."""
        clean = softmax(queries.logits)
        return perturbed(clean, reverse_sigmoid(clean, beta=self.beta, gamma=self.gamma))
