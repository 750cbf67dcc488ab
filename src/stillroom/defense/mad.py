"""MAD: the bounded change of an answer that turns the thief's gradient furthest away from the true one.

T. Orekondy, B. Schiele, M. Fritz, "Prediction Poisoning: Towards Defenses Against DNN Model Stealing Attacks", ICLR
2020.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import ClassVar, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from stillroom.cards import Card, Paper, Quirk
from stillroom.defense._perturbed import perturbed
from stillroom.defense.contracts import Answers, Floats, Images, Queries, softmax
from stillroom.errors import InputError, unknown_name

__all__ = ["MAD", "Poisoned", "angular_objective", "last_layer_jacobian", "mad"]

Oracle = Literal["extreme", "argmax", "argmin"]
Objective = Literal["surrogate", "angular"]
Distance = Literal["l1", "l2"]

MOST_CLASSES = 10  # of the oracle that keeps the top class: it tries 2^(K-1) answers
_TOP = 1e-5  # what the top class gets more than the others of a candidate


class Poisoned(NamedTuple):
    """An answer and how it was found.

    Shapes:
        target: [K], the answer it was moved towards. probabilities: [K].
    """

    target: Floats
    probabilities: Floats
    objective: float  # angular


def last_layer_jacobian(probabilities: Floats, features: NDArray[np.floating]) -> Floats:
    """Return the gradients of ``-log p_k`` with respect to the last layer's weights: ``(p - e_k) z^T`` as row k.

    Args:
        probabilities: The network's softmax, p.
        features: Input of its last linear layer, z; with a 1 at the end for the bias.

    Shapes:
        probabilities: [K]. features: [d]. Returns [K, K d].

    Example:
        >>> last_layer_jacobian(np.array([0.75, 0.25]), np.array([2.0])).tolist()
        [[-0.5, 0.5], [1.5, -1.5]]
    """
    logits = probabilities - np.eye(len(probabilities))  # row k: gradient with respect to the logits
    return np.asarray((logits[:, :, None] * features).reshape(len(probabilities), -1))


def angular_objective(jacobian: Floats, answer: Floats, candidates: Floats) -> Floats:
    """Return ``|| G^T y' / ||G^T y'|| - G^T y / ||G^T y|| ||²`` for each candidate y'; a gradient of 0 stays 0.

    Shapes:
        jacobian: [K, D], G. answer: [K], y. candidates: [M, K]. Returns [M], 0..4.

    Example:
        >>> angular_objective(np.eye(2), np.array([1.0, 0.0]), np.eye(2)).tolist()
        [0.0, 2.0]
    """
    return np.asarray(((_unit(candidates @ jacobian) - _unit(answer @ jacobian)) ** 2).sum(1))


def mad(
    jacobian: Floats,
    probabilities: Floats,
    *,
    epsilon: float = 0.5,
    oracle: Oracle = "extreme",
    objective: Objective = "surrogate",
    distance: Distance = "l1",
) -> Poisoned:
    """Move an answer towards the one an oracle picks, as far as ``epsilon`` allows.

    ``y' = (1 - alpha) y + alpha y*`` with ``alpha = min(epsilon / (||y - y*|| + 1e-7), 1)``.

    Args:
        jacobian: G; row k is the gradient of -log p_k of a network like the thief's.
        probabilities: The model's answer y.
        epsilon: Largest distance of y' from y.
        oracle: ``extreme`` tries every single class, ``argmax`` every set of equal classes that keeps the top class on
            top, ``argmin`` takes the least likely class.
        objective: What the oracle maximises: the angle between gradients, or its surrogate ``||G^T (y* - y)||²``.
        distance: Norm of the distance.

    Shapes:
        jacobian: [K, D]. probabilities: [K].

    Raises:
        InputError: More than 10 classes for the oracle ``argmax``, which tries 2^(K-1) answers.

    Example:
        >>> mad(np.eye(2), np.array([0.75, 0.25]), epsilon=0.5).probabilities.round(6).tolist()
        [0.5, 0.5]
    """
    y, G = np.asarray(probabilities, np.float64), np.asarray(jacobian, np.float64)
    candidates = _candidates(y, oracle)
    if objective == "surrogate":
        gains = (((candidates - y) @ G) ** 2).sum(1)
    else:
        gains = angular_objective(G, y, candidates)
    target = candidates[int(gains.argmax())]
    apart = np.abs(y - target).sum() if distance == "l1" else np.sqrt(((y - target) ** 2).sum())
    alpha = min(epsilon / (apart + 1e-7), 1.0)
    moved = (1 - alpha) * y + alpha * target
    return Poisoned(target, moved, float(angular_objective(G, y, moved[None])[0]))


def _candidates(y: Floats, oracle: Oracle) -> Floats:
    classes = len(y)
    if oracle == "extreme":
        return np.eye(classes)
    if oracle == "argmin":
        return np.eye(classes)[[y.argmin()]]
    if classes > MOST_CLASSES:
        raise InputError(f"the oracle 'argmax' handles {MOST_CLASSES} classes, not {classes}; take 'extreme'")
    top = y.argmax()
    chosen = (np.arange(2**classes)[:, None] >> np.arange(classes)) & 1
    sets = chosen[chosen[:, top] == 1].astype(np.float64)
    sets[:, top] += _TOP
    return np.asarray(sets / sets.sum(1, keepdims=True))


def _unit(vectors: Floats) -> Floats:
    length = np.sqrt((vectors**2).sum(-1, keepdims=True))
    return np.asarray(vectors / np.where(length == 0, 1, length))


class MAD:
    """Answers that mislead the gradient of a thief whose network resembles ``proxy``.

    G is taken of the last layer only. There the features scale all gradients alike, ``G^T y = (p - y) z^T``, so neither
    the angle nor the surrogate's order depends on them, and the gradients with respect to the logits do. It also
    means that the surrogate with the oracle ``extreme`` always picks the least likely class.

    Args:
        proxy: Logits [B, K] of a network like the thief's, another one than the guarded model; untrained in the paper.
        epsilon: Largest distance from the model's own answer. With l1, 2 allows anything, and at 1 a certain answer
            shares the top with another class: from there on honest users lose the right label, except with ``argmax``.
        oracle: How the answer to move towards is found; see :func:`mad`.
        objective: What the oracle maximises.
        distance: Norm of the distance.

    Raises:
        InputError: ``epsilon`` is not above 0 or not finite, or an option does not exist.
    """

    card: ClassVar[Card] = Card(
        name="mad",
        summary="Moves each answer where it turns the gradient of a clone furthest away, within a bound.",
        papers=(
            Paper(
                title="Prediction Poisoning: Towards Defenses Against DNN Model Stealing Attacks",
                authors="T. Orekondy, B. Schiele, M. Fritz",
                venue="ICLR",
                year=2020,
                identifier="arXiv:1906.10908",
            ),
        ),
        standing="verified",
        ledger=(
            Quirk(
                paper="the oracle maximises the angle between the gradients",
                code="the squared distance of the gradients, which is faster",
                default="code",
                option="objective='angular'",
            ),
            Quirk(
                paper="a projection to the ball around the answer",
                code="an alternative call hands its arguments over in the wrong order",
                default="paper",
            ),
        ),
    )

    def __init__(
        self,
        proxy: Callable[[Images], NDArray[np.floating]],
        *,
        epsilon: float = 0.5,
        oracle: Oracle = "extreme",
        objective: Objective = "surrogate",
        distance: Distance = "l1",
    ) -> None:
        if not 0 < epsilon < math.inf:
            raise InputError(f"epsilon is {epsilon}; it must be finite and above 0")
        for kind, value, known in (
            ("oracle", oracle, get_args(Oracle)),
            ("objective", objective, get_args(Objective)),
            ("distance", distance, get_args(Distance)),
        ):
            if value not in known:
                raise unknown_name(kind, value, known)
        self.proxy, self.epsilon, self.oracle = proxy, epsilon, oracle
        self.objective, self.distance = objective, distance

    def answer(self, queries: Queries) -> Answers:
        """Answer one account's consecutive queries."""
        clean, scale = softmax(queries.logits), np.ones(1)
        answered = [
            mad(
                last_layer_jacobian(guess, scale),
                own,
                epsilon=self.epsilon,
                oracle=self.oracle,
                objective=self.objective,
                distance=self.distance,
            ).probabilities
            for own, guess in zip(clean, softmax(self.proxy(queries.images)), strict=True)
        ]
        return perturbed(clean, np.stack(answered))
