"""Noise on the answers: the plainest perturbation, and what cleverer ones must beat."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import ClassVar, Literal, get_args

import numpy as np

from stillroom.cards import Card, Paper, Quirk
from stillroom.defense._perturbed import normalised, perturbed
from stillroom.defense.contracts import Answers, Floats, Queries, softmax
from stillroom.errors import InputError, unknown_name

__all__ = ["GaussianNoise", "LogitNoise", "gaussian_noise", "logit_noise", "project_to_ball", "uniform_from_normal"]

Norm = Literal["l1", "l2"]
Distribution = Literal["uniform", "normal"]

_EDGE = 1e-9  # probabilities are kept this far from 0 and 1, where the logit is infinite
_MAD = Paper(
    title="Prediction Poisoning: Towards Defenses Against DNN Model Stealing Attacks",
    authors="T. Orekondy, B. Schiele, M. Fritz",
    venue="ICLR",
    year=2020,
    identifier="arXiv:1906.10908",
)
_FRESH = Quirk(
    paper="independent noise for each answer",
    code="the same: repeating a query and averaging takes it away",
    default="neither",
    option="draw=fresh_poison",
)


def gaussian_noise(probabilities: Floats, draws: Floats, *, sigma: float = 0.1) -> Floats:
    """Add ``sigma`` times N(0, 1) draws to probabilities, cut at 0 and normalise.

    Shapes:
        probabilities, draws: [B, K]; so is what is returned.

    Example:
        >>> gaussian_noise(np.array([[0.5, 0.5]]), np.array([[2.5, -9.0]]), sigma=0.1).tolist()
        [[1.0, 0.0]]
    """
    return normalised((probabilities + sigma * draws).clip(0))


def logit_noise(probabilities: Floats, noise: Floats, *, epsilon: float, norm: Norm) -> Floats:
    """Add noise to the log-odds: ``y' ∝ sigmoid(log(y / (1 - y)) + delta)``, delta projected to a ball.

    T. Orekondy, B. Schiele, M. Fritz, ICLR 2020, the random-noise baseline.

    Args:
        probabilities: The model's own.
        noise: Before it is projected.
        epsilon: Radius of the ball.
        norm: Its norm.

    Shapes:
        probabilities, noise: [B, K]; so is what is returned.

    Example:
        >>> logit_noise(np.array([[0.5, 0.5]]), np.array([[9.0, 0.0]]), epsilon=1.0, norm="l2").round(3).tolist()
        [[0.594, 0.406]]
    """
    y = np.asarray(probabilities, np.float64).clip(_EDGE, 1 - _EDGE)
    return normalised(1 / (1 + (1 - y) / y * np.exp(-project_to_ball(noise, epsilon, norm))))


def project_to_ball(values: Floats, radius: float, norm: Norm) -> Floats:
    """Return for each row the nearest point of the ball around 0.

    For l1 the magnitudes are lowered by one number, the ones below it to 0 (J. Duchi et al., ICML 2008).

    Shapes:
        values: [B, K]; so is what is returned.

    Example:
        >>> project_to_ball(np.array([[3.0, -4.0]]), 1.0, "l2").tolist()
        [[0.6000000000000001, -0.8]]
        >>> project_to_ball(np.array([[3.0, -4.0, 0.5], [0.1, 0.0, 0.0]]), 2.0, "l1").tolist()
        [[0.5, -1.5, 0.0], [0.1, 0.0, 0.0]]
    """
    if norm == "l2":
        length = np.sqrt((values**2).sum(1, keepdims=True))
        return np.asarray(values * np.minimum(1, radius / np.maximum(length, radius)))
    size = np.abs(values)
    falling = -np.sort(-size, axis=1)
    over = (np.cumsum(falling, 1) - radius) / np.arange(1, size.shape[1] + 1)
    last = (falling > over).sum(1, keepdims=True) - 1  # the condition holds for the first ones, and for one at least
    lowered = np.maximum(np.take_along_axis(over, last, 1), 0)
    return np.asarray(np.sign(values) * np.maximum(size - lowered, 0))


def uniform_from_normal(draws: Floats) -> Floats:
    """Turn N(0, 1) draws into uniform ones on 0..1.

    Example:
        >>> uniform_from_normal(np.array([0.0, 40.0])).tolist()
        [0.5, 1.0]
    """
    return np.array([0.5 * (1 + math.erf(value / math.sqrt(2))) for value in draws.ravel()]).reshape(draws.shape)


class GaussianNoise:
    """Answers with Gaussian noise on the probabilities.

    Args:
        draw: N(0, 1) numbers [B, K] for queries, such as :class:`~stillroom.defense.poison.KeyedPoison`.
        sigma: Standard deviation of the noise.

    Raises:
        InputError: ``sigma`` is negative or not finite.
    """

    card: ClassVar[Card] = Card(
        name="gaussian_noise",
        summary="Adds Gaussian noise to the probabilities.",
        papers=(_MAD,),
        standing="derived",
        ledger=(_FRESH,),
    )

    def __init__(self, draw: Callable[[Queries], Floats], *, sigma: float = 0.1) -> None:
        if not 0 <= sigma < math.inf:
            raise InputError(f"sigma is {sigma}; it must be finite and at least 0")
        self.draw, self.sigma = draw, sigma

    def answer(self, queries: Queries) -> Answers:
        """Answer one account's consecutive queries."""
        clean = softmax(queries.logits)
        return perturbed(clean, gaussian_noise(clean, self.draw(queries), sigma=self.sigma))


class LogitNoise:
    """Answers with noise on the log-odds, of bounded norm.

    Args:
        draw: N(0, 1) numbers [B, K] for queries, such as :class:`~stillroom.defense.poison.KeyedPoison`.
        epsilon: Radius of the ball the noise is projected to.
        norm: Norm of that ball, p.
        distribution: Of the noise before: uniform on ``[0, 2 epsilon / K^(1/p)]``, or N(0, 1).

    Raises:
        InputError: ``epsilon`` is not above 0 or not finite, or an option does not exist.
    """

    card: ClassVar[Card] = Card(
        name="logit_noise",
        summary="Adds noise of bounded norm to the log-odds of the probabilities.",
        papers=(_MAD,),
        standing="derived",
        ledger=(_FRESH,),
    )

    def __init__(
        self,
        draw: Callable[[Queries], Floats],
        *,
        epsilon: float = 1.0,
        norm: Norm = "l2",
        distribution: Distribution = "uniform",
    ) -> None:
        if not 0 < epsilon < math.inf:
            raise InputError(f"epsilon is {epsilon}; it must be finite and above 0")
        if norm not in get_args(Norm):
            raise unknown_name("norm", norm, get_args(Norm))
        if distribution not in get_args(Distribution):
            raise unknown_name("distribution", distribution, get_args(Distribution))
        self.draw, self.epsilon, self.norm, self.distribution = draw, epsilon, norm, distribution

    def answer(self, queries: Queries) -> Answers:
        """Answer one account's consecutive queries."""
        clean = softmax(queries.logits)
        noise = self.draw(queries)
        if self.distribution == "uniform":
            power = 1 if self.norm == "l1" else 0.5
            noise = uniform_from_normal(noise) * 2 * self.epsilon / clean.shape[1] ** power
        return perturbed(clean, logit_noise(clean, noise, epsilon=self.epsilon, norm=self.norm))
