"""Colluding accounts: judge accounts by what the newcomers of late have in common, before a window is full.

A thief who spreads queries over many accounts gives none of them a full window. What the accounts cannot hide is that
they all ask from the same surrogate set: their features leave the classes' means in the same direction. Here that
direction is learnt from the first queries of all accounts together, and each account is scored along it from its first
query on. Nothing published does this; the ingredients are Fisher's linear discriminant (R. A. Fisher, "The Use of
Multiple Measurements in Taxonomic Problems", Annals of Eugenics, 1936) and the account windows of D-ADD.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from stillroom.cards import Card, Paper
from stillroom.defense.calibrate import window_scores
from stillroom.defense.contracts import Floats, Ints, Queries
from stillroom.defense.dadd import ADD
from stillroom.errors import InputError

__all__ = ["Linked", "Whitening", "fisher_map", "fit_whitening", "shift_significance"]

RIDGE = 1e-3  # of the mean variance, added to each: directions in which nothing varies must not be blown up


@dataclass(frozen=True)
class Whitening:
    """Makes the features of honest queries have mean zero in each predicted class, and unit covariance overall.

    Shapes:
        mean: [C, d]. transform: [d, d].
    """

    mean: Floats
    transform: Floats

    def __call__(self, features: NDArray[np.floating], classes: Ints) -> Floats:
        """Return the whitened deviations [n, d] of features from the means of their predicted classes."""
        deviations: Floats = (np.asarray(features, np.float64) - self.mean[classes]) @ self.transform
        return deviations


def fit_whitening(features: NDArray[np.floating], classes: Ints, fallback: Floats) -> Whitening:
    """Fit the whitening on held-out honest queries.

    Args:
        features: Of held-out images, which the model was not trained on: those it was trained on deviate less.
        classes: Predicted.
        fallback: Means of classes that were not predicted.

    Shapes:
        features: [N, d]. classes: [N]. fallback: [C, d].

    Raises:
        InputError: There are not more samples than features, or one is not finite.

    Example:
        >>> held_out = np.random.default_rng(0).normal(3.0, 2.0, (1000, 2))
        >>> whitening = fit_whitening(held_out, np.zeros(1000, np.int64), np.zeros((1, 2)))
        >>> (whitening(held_out, np.zeros(1000, np.int64)).std(0) * 100).round().tolist()
        [100.0, 100.0]
    """
    samples = np.asarray(features, np.float64)
    if len(samples) != len(classes) or len(samples) <= samples.shape[1]:
        raise InputError(
            f"{len(samples)} held-out queries are too few to link accounts by {samples.shape[1]} features; give more"
        )
    if not np.isfinite(samples).all():
        raise InputError("a held-out feature is not finite")
    mean = np.array(fallback, np.float64)
    for c in np.unique(classes):
        mean[c] = samples[classes == c].mean(0)
    deviations = samples - mean[classes]
    values, vectors = np.linalg.eigh(deviations.T @ deviations / len(samples))
    ridge = RIDGE * values.mean()
    if ridge <= 0:
        raise InputError("all held-out features of a class are the same; there is nothing to link accounts by")
    return Whitening(mean, vectors / np.sqrt(values.clip(0) + ridge))


def fisher_map(cov: Floats) -> Floats:
    """Return the matrix that makes a pool's mean the direction that best tells the pool from honest queries.

    ``((cov + I) / 2)^-1``, of Fisher's discriminant for a pool with this covariance and honest queries with mean zero
    and unit covariance: both are whitened by the latter. The pool's covariance keeps a loud attack (noise) from hiding
    a quiet one (photographs): a direction in which the pool is spread widely counts less.

    Shapes:
        cov: [d, d]. Returns [d, d].

    Example:
        >>> fisher_map(np.diag([1.0, 3.0])).tolist()
        [[1.0, 0.0], [0.0, 0.5]]
    """
    return np.asarray(np.linalg.inv((cov + np.eye(len(cov))) / 2))


def shift_significance(mean: Floats, pooled: float, held_out: int) -> float:
    """Return by how many standard deviations a pool's mean lies farther from zero than chance explains.

    For whitened features ``|mean|² / (1/pooled + 1/held_out)`` follows a chi-squared distribution with d degrees of
    freedom, whose mean is d and whose variance 2 d.

    Example:
        >>> round(shift_significance(np.full(64, 0.1), 1000, 1000), 1)
        22.6
    """
    freedom = len(mean)
    statistic = float(mean @ mean) / (1 / pooled + 1 / held_out)
    return (statistic - freedom) / float(np.sqrt(2 * freedom))


@dataclass(frozen=True)
class _Learnt:
    """A direction, and the means along it of honest windows of 1..W queries: [W, R], ascending."""

    direction: Floats
    honest: Floats
    inverse: Floats  # Fisher's map, [d, d]
    weight: float  # of the pool


class Linked:
    """D-ADD's detector, joined by a score along the direction in which all newcomers deviate together.

    Each account's first W queries enter a pool, once: running moments that forget slowly, [d, d] numbers however many
    accounts there are. While the pool's mean is farther from the held-out traffic's than chance explains, an account is
    also scored by the mean of its last queries (1 to W of them) along Fisher's direction. That mean is translated into
    the score of a full window that is as rare among honest accounts, so one threshold serves both; the score is the
    larger one. Two tests instead of one flag up to twice as many honest queries: choose the threshold accordingly.

    Whoever fills the pool, honest queries like those held out stay below the threshold as often as before. Honest users
    who all deviate in one way (the same broken camera) are linked as colluders are.

    Args:
        add: The detector; its store of windows may be any.
        features: Of held-out honest queries, at least as many as there are features.
        classes: Predicted for them.
        windows: Positions of honest windows among them, see :func:`stillroom.defense.calibrate.draw_windows`.
        memory: Queries after which the pool has forgotten all but a share of 1/e.
        warmup: Queries the pool needs before it is used.
        refresh: Pooled queries after which the direction is learnt anew.
        gate: Standard deviations the pool must be off (the pooled test); minus infinity always links.

    Shapes:
        features: [N, d]. classes: [N]. windows: [R, W].

    Raises:
        InputError: The windows have another size than the detector's, or an option is outside its range.
    """

    card: ClassVar[Card] = Card(
        name="linked",
        summary="Scores young accounts along the direction in which all newcomers deviate together.",
        papers=(
            Paper(
                title="The Use of Multiple Measurements in Taxonomic Problems",
                authors="R. A. Fisher",
                venue="Annals of Eugenics",
                year=1936,
                identifier="doi:10.1111/j.1469-1809.1936.tb02137.x",
            ),
            *ADD.card.papers,
        ),
        standing="derived",
    )

    def __init__(
        self,
        add: ADD,
        features: NDArray[np.floating],
        classes: Ints,
        windows: Ints,
        *,
        memory: int = 4096,
        warmup: int = 512,
        refresh: int = 128,
        gate: float = 3.0,
    ) -> None:
        if windows.ndim != 2 or windows.shape[1] != add.windows.size or len(windows) < 100:
            raise InputError(
                f"honest windows of shape {windows.shape}; at least 100 of {add.windows.size} queries are needed"
            )
        if not 1 <= warmup <= memory or refresh < 1:
            raise InputError(
                f"warmup is {warmup}, memory {memory}, refresh {refresh}; all must be at least 1, warmup at most memory"
            )
        self.add, self.memory, self.warmup, self.refresh, self.gate = add, memory, warmup, refresh, gate
        self.whitening = fit_whitening(features, classes, add.reference.mean)
        self._held_out = self.whitening(features, classes)
        self._windows = windows
        self._full = np.sort(window_scores(add.reference, features, classes, windows, add.expected))
        self._lock = threading.Lock()
        width = self._held_out.shape[1]
        self._pool: dict[str, Floats] = {
            "weights": np.zeros(3),  # sum of the weights, of their squares, and queries since the last refresh
            "first": np.zeros(width),
            "second": np.zeros((width, width)),
        }
        self._learnt: _Learnt | None = None

    @property
    def significance(self) -> float:
        """The pooled test: standard deviations by which the newcomers are off; NaN before the warm-up."""
        with self._lock:
            return self._significance()

    def watch(self, queries: Queries) -> Floats:
        """Take in one account's consecutive queries and return their scores [B]; NaN where none is due.

        Raises:
            InputError: A feature is not finite; nothing is taken in then.
        """
        if not np.isfinite(queries.features).all():
            raise InputError("a feature is not finite")  # one would spoil the pool for everybody
        classes = queries.logits.argmax(1).astype(np.int64)
        window = self.add.windows.append(queries.account, queries.features, classes)
        scores = self.add.score(window, len(queries))
        deviations = self.whitening(window.features, window.classes)
        learnt, new = self._learnt, len(queries)
        if learnt is not None:
            # An account must not be judged by a direction it took part in: its own share is taken out again. What
            # it asked since the direction was learnt is not in there yet, so this errs on the honest side.
            number = window.total - len(deviations) + np.arange(len(deviations))  # of the account's queries, from 0
            own = deviations[: len(deviations) - new][number[: len(deviations) - new] < self.add.windows.size].sum(0)
            direction = learnt.direction - learnt.inverse @ own / learnt.weight
            scores = np.fmax(scores, self._along(learnt, deviations @ direction, new))
        young = self.add.windows.size - (window.total - new)  # queries that still may enter the pool
        if young > 0:
            with self._lock:
                self._absorb(deviations[-new:][:young])
        return scores

    def state(self) -> dict[str, Floats]:
        """Return a copy of the pool, to be stored and given to :meth:`restore` after a restart."""
        with self._lock:
            return {name: value.copy() for name, value in self._pool.items()}

    def restore(self, state: Mapping[str, Floats]) -> None:
        """Take up a stored pool.

        Raises:
            InputError: It is not one of this detector's.
        """
        if {n: v.shape for n, v in state.items()} != {n: v.shape for n, v in self._pool.items()}:
            raise InputError("the stored pool belongs to a model with other features; start without it")
        if not all(np.isfinite(value).all() for value in state.values()):
            raise InputError("the stored pool holds numbers that are not finite; start without it")
        with self._lock:
            self._pool = {name: np.array(value, np.float64) for name, value in state.items()}
            self._learn()

    def _along(self, learnt: _Learnt, along: Floats, new: int) -> Floats:
        """Translate the means of the last 1..W numbers at each of the new positions into scores of full windows."""
        sums = np.concatenate([[0.0], np.cumsum(along)])
        ends = np.arange(len(along) - new + 1, len(along) + 1)
        counts = np.minimum(ends, self.add.windows.size)
        means = (sums[ends] - sums[ends - counts]) / counts
        return np.array([self._translate(mean, learnt.honest[n - 1]) for mean, n in zip(means, counts, strict=True)])

    def _translate(self, mean: float, honest: Floats) -> float:
        full, middle = self._full, len(honest) // 2
        if mean <= honest[-1]:
            return float(np.interp(mean, honest, full))
        # Beyond all honest windows ranks say nothing more; distances from the median go on.
        beyond = (mean - honest[-1]) / max(honest[-1] - honest[middle], 1e-300)
        return float(full[-1] + beyond * (full[-1] - full[middle]))

    def _absorb(self, deviations: Floats) -> None:
        weights, kept = self._pool["weights"], np.exp(-len(deviations) / self.memory)
        weights *= (kept, kept**2, 1.0)
        weights += len(deviations)
        self._pool["first"] *= kept
        self._pool["first"] += deviations.sum(0)
        self._pool["second"] *= kept
        self._pool["second"] += deviations.T @ deviations
        if weights[2] >= self.refresh and weights[0] >= self.warmup:
            self._learn()

    def _significance(self) -> float:
        total, squares, _ = self._pool["weights"]
        if total < self.warmup:
            return float("nan")
        return shift_significance(self._pool["first"] / total, total**2 / squares, len(self._held_out))

    def _learn(self) -> None:
        self._pool["weights"][2] = 0
        total = self._pool["weights"][0]
        if not self._significance() > self.gate:
            self._learnt = None
            return
        mean = self._pool["first"] / total
        inverse = fisher_map(self._pool["second"] / total - np.outer(mean, mean))
        direction = inverse @ mean
        along = (self._held_out @ direction)[self._windows]
        size = along.shape[1]
        honest = np.sort((np.cumsum(along, 1) / np.arange(1, size + 1)).T, 1)
        self._learnt = _Learnt(direction, honest, inverse, float(total))
