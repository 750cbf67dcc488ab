"""Thresholds from held-out traffic: a chosen share of honest windows may lie above them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stillroom.defense.add import Reference, window_score
from stillroom.defense.contracts import Floats, Ints
from stillroom.errors import InputError

__all__ = [
    *("Calibration", "HonestScores", "binomial_interval", "calibrate", "draw_windows", "honest_scores"),
    *("quantile_threshold", "two_halves", "window_scores", "windows_for"),
]


@dataclass(frozen=True)
class Calibration:
    """A threshold and how it did on honest windows that took no part in choosing it.

    It is valid for one model, one window and the mix of classes it was measured with.
    """

    threshold: float
    target_fpr: float
    fpr: float  # share of the other honest windows above the threshold
    low: float  # 95 % interval of that share
    high: float
    windows: int  # drawn for choosing, and as many again for checking
    median: float  # of the honest scores


def calibrate(scores: HonestScores, *, target_fpr: float = 0.01) -> Calibration:
    """Choose the threshold of a window size, and tell the false-positive rate one gets with it.

    Args:
        scores: Of honest windows, see :func:`honest_scores`.
        target_fpr: Share of honest windows that may lie above the threshold.

    Raises:
        InputError: The rate is outside 0..1, or too small for so few windows.

    Example:
        >>> scores = HonestScores(np.arange(1000.0), np.arange(1000.0) + 5)
        >>> found = calibrate(scores, target_fpr=0.05)
        >>> found.threshold, found.fpr
        (949.0, 0.055)
    """
    draws, least = len(scores.choosing), windows_for(target_fpr)
    if draws < least:
        raise InputError(f"{draws} windows cannot tell a false-positive rate of {target_fpr:g}; draw at least {least}")
    threshold = quantile_threshold(scores.choosing, target_fpr)
    above = int((scores.checking > threshold).sum())
    low, high = binomial_interval(above, len(scores.checking))
    median = float(np.median(np.concatenate(scores)))
    return Calibration(threshold, target_fpr, above / len(scores.checking), low, high, draws, median)


def windows_for(target_fpr: float) -> int:
    """Return how many windows it takes to choose a threshold for a rate: ten of them should lie above it.

    Raises:
        InputError: The rate is outside 0..1.

    Example:
        >>> windows_for(0.01)
        1000
    """
    if not 0.0 < target_fpr < 1.0:
        raise InputError(f"target_fpr is {target_fpr}; it must lie between 0 and 1, such as 0.01")
    return math.ceil(round(10 / target_fpr, 6))


class HonestScores(NamedTuple):
    """Scores of windows of held-out images; the two halves share no image.

    Shapes:
        choosing: [n], a threshold is chosen on. checking: [n], tell what it is worth.
    """

    choosing: Floats
    checking: Floats


def two_halves(samples: int, seed: int = 0) -> tuple[Ints, Ints]:
    """Split positions 0..samples-1 at random: what thresholds are chosen on, and what they are checked on."""
    order = np.random.default_rng(seed).permutation(samples)
    return order[: samples // 2], order[samples // 2 :]


def honest_scores(
    reference: Reference,
    features: NDArray[np.floating],
    logits: NDArray[np.floating],
    *,
    window: int,
    expected: Floats | None = None,
    labels: Ints | None = None,
    concentration: float | None = None,
    draws: int = 4000,
    seed: int = 0,
) -> HonestScores:
    """Score windows of held-out data the model was not trained on, of each of its :func:`two_halves`.

    Args:
        reference: Class-wise normals of the training features.
        features: Of held-out images.
        logits: Of the same images; the most likely class counts as predicted.
        window: Queries in a window.
        expected: What is taken away from each class distance, see :func:`~stillroom.defense.add.window_score`; measure
            it on the first of the two halves.
        labels: True classes, needed with ``concentration``.
        concentration: Each window has its own mix of classes, drawn from a symmetric Dirichlet distribution: 0.3
            imitates users interested in a few classes. Without it, windows have the data's mix.
        draws: Windows drawn from each half.
        seed: Seed of the halves and the draws.

    Shapes:
        features: [N, d]. logits: [N, K]. expected: [C, window + 1]. labels: [N].

    Raises:
        InputError: There are too few samples for a window.
    """
    if len(features) < 2 * window:
        raise InputError(
            f"{len(features)} held-out samples are too few for windows of {window}; give at least {2 * window}"
        )
    stream = np.random.default_rng((seed, 1))
    classes = np.asarray(logits).argmax(1).astype(np.int64)
    scores: list[Floats] = []
    for half in two_halves(len(features), seed):
        mix = None if labels is None else np.asarray(labels)[half]
        chosen = draw_windows(len(half), window, draws, stream, labels=mix, concentration=concentration)
        scores.append(window_scores(reference, features, classes, half[chosen], expected))
    return HonestScores(*scores)


def quantile_threshold(scores: Floats, target_fpr: float) -> float:
    """Return the smallest score that at most a share of ``target_fpr`` of the scores exceeds.

    Example:
        >>> quantile_threshold(np.arange(100.0), 0.01)
        98.0
    """
    return float(np.quantile(scores, 1 - target_fpr, method="inverted_cdf"))


def window_scores(
    reference: Reference,
    features: NDArray[np.floating],
    classes: Ints,
    windows: NDArray[np.integer],
    expected: Floats | None = None,
) -> Floats:
    """Score many windows, see :func:`~stillroom.defense.add.window_score`.

    Shapes:
        features: [N, d]. classes: [N], predicted. windows: [n, W], positions of their queries. Returns [n].
    """
    return np.array([window_score(reference, features[own], classes[own], expected).score for own in windows])


def draw_windows(
    samples: int,
    window: int,
    draws: int,
    stream: np.random.Generator,
    *,
    labels: NDArray[np.integer] | None = None,
    concentration: float | None = None,
) -> Ints:
    """Draw windows of positions 0..samples-1, without repeats inside a window where the mix of classes allows it.

    Shapes:
        labels: [samples]. Returns [draws, window].

    Raises:
        InputError: There are fewer samples than a window holds, or a mix is asked for without labels.
    """
    if concentration is None:
        if samples < window:
            raise InputError(f"{samples} samples do not fill a window of {window}")
        return np.stack([stream.choice(samples, window, replace=False) for _ in range(draws)])
    if labels is None:
        raise InputError("a mix of classes needs the labels of the held-out samples")
    if concentration <= 0:
        raise InputError(f"concentration is {concentration}; it must be above 0")
    members = [np.flatnonzero(labels == c) for c in np.unique(labels)]
    return np.stack([_mixed(members, window, stream, concentration) for _ in range(draws)])


def _mixed(members: Sequence[Ints], window: int, stream: np.random.Generator, concentration: float) -> Ints:
    shares = stream.dirichlet(np.full(len(members), concentration))
    counts = stream.multinomial(window, shares)
    drawn = [
        stream.choice(own, count, replace=count > len(own)) for own, count in zip(members, counts, strict=True) if count
    ]
    return stream.permutation(np.concatenate(drawn))


def binomial_interval(successes: int, trials: int) -> tuple[float, float]:
    """Return the 95 % Wilson interval of a share.

    Example:
        >>> [round(end, 4) for end in binomial_interval(1, 100)]
        [0.0018, 0.0545]
    """
    z = 1.959964
    share = successes / trials
    centre = share + z * z / (2 * trials)
    half = z * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    scale = 1 + z * z / trials
    return max((centre - half) / scale, 0.0), min((centre + half) / scale, 1.0)
