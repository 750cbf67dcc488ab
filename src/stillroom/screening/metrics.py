"""How well scores rank the interacting pairs before the others: areas under curves, and what counts at the top.

Pairs with equal scores are in no order. Every measure is the same whatever their order in the input: a threshold takes
all of them or none, and where a list is cut among them, they count with the expectation over their orders.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from stillroom.errors import InputError
from stillroom.screening._checks import in_range

__all__ = ["auc", "aupr", "average_precision", "bedroc", "enrichment_factor", "measure", "precision_at"]


def auc(labels: object, scores: object) -> float:
    """Return the area under the receiver operating characteristic.

    It is the share of all pairs of an interacting and another one that are in the right order, ties counted one half:
    J. A. Hanley, B. J. McNeil, "The meaning and use of the area under a receiver operating characteristic (ROC) curve",
    Radiology 143(1), 1982.

    Shapes:
        labels [P], scores [P] -> a number in 0..1.

    Raises:
        InputError: Labels are not 0 or 1, scores are not finite, or either class is missing.

    Example:
        >>> auc([1, 0, 1, 0], [0.9, 0.5, 0.5, 0.1])
        0.875
    """
    from sklearn.metrics import roc_auc_score

    _tied(labels, scores, needed=(0, 1))  # says what is wrong in one line
    return float(roc_auc_score(labels, scores))


def aupr(labels: object, scores: object) -> float:
    """Return the area under the precision-recall curve by the trapezoid rule, as the field's comparisons report it.

    The points stand at the distinct thresholds, after one at recall 0 and precision 1. Straight lines between them
    promise more than thresholds can hold (J. Davis, M. Goadrich, "The relationship between precision-recall and ROC
    curves", ICML 2006); :func:`average_precision` draws none.

    Shapes:
        labels [P], scores [P] -> a number in 0..1.

    Raises:
        InputError: Labels are not 0 or 1, scores are not finite, or no label is 1.

    Example:
        >>> aupr([1, 0, 1, 0], [0.9, 0.8, 0.7, 0.1])  # 1/2 * 1 + 1/2 * (1/2 + 2/3) / 2
        0.7916666666666666
    """
    from sklearn import metrics

    _tied(labels, scores, needed=(1,))
    precision, recall, _ = metrics.precision_recall_curve(labels, scores)
    return float(metrics.auc(recall, precision))


def average_precision(labels: object, scores: object) -> float:
    """Return the precision at each distinct threshold, weighted with the recall it adds.

    ``AP = sum over thresholds i of (R_i - R_(i-1)) P_i``, the area under the curve as steps.

    Shapes:
        labels [P], scores [P] -> a number in 0..1.

    Raises:
        InputError: Labels are not 0 or 1, scores are not finite, or no label is 1.

    Example:
        >>> average_precision([1, 0, 1, 0], [0.9, 0.8, 0.7, 0.1])  # 1/2 * 1 + 1/2 * 2/3
        0.8333333333333333
    """
    from sklearn.metrics import average_precision_score

    _tied(labels, scores, needed=(1,))
    return float(average_precision_score(labels, scores))


def precision_at(labels: object, scores: object, k: int) -> float:
    """Return the expected share of interactions among the first k pairs.

    Of a tied group at the cut, the places left are filled with its share of interactions. Where there are fewer than k
    pairs, the empty places are misses.

    Args:
        labels: 0 or 1.
        scores: The higher, the earlier.
        k: Length of the list.

    Shapes:
        labels [P], scores [P] -> a number in 0..1.

    Raises:
        InputError: Labels are not 0 or 1, scores are not finite, or k is below 1.

    Example:
        >>> precision_at([1, 1, 0], [0.9, 0.5, 0.5], 2)  # 1, and 1/2 of the tie
        0.75
    """
    in_range("k", k, 1, whole=True)
    positives, sizes = _tied(labels, scores)
    return _hits(positives, sizes, k) / k


def enrichment_factor(labels: object, scores: object, fraction: float = 0.01) -> float:
    """Return how many times more interactions the top of the list holds than as many pairs drawn at random.

    ``EF = (hits among the first k / k) / (interactions / P)`` with ``k = ceil(fraction P)``; ties at the cut as in
    :func:`precision_at`.

    Args:
        labels: 0 or 1.
        scores: The higher, the earlier.
        fraction: How much of the list is its top, above 0 and at most 1.

    Shapes:
        labels [P], scores [P] -> a number from 0 to ``P / k``; 1 is random.

    Raises:
        InputError: Labels are not 0 or 1, scores are not finite, no label is 1, or the fraction is out of range.

    Example:
        >>> enrichment_factor([1, 0, 0, 0], [0.9, 0.5, 0.3, 0.1], fraction=0.5)
        2.0
    """
    in_range("fraction", fraction, 0, 1, above=True)
    positives, sizes = _tied(labels, scores, needed=(1,))
    total = int(sizes.sum())
    k = max(1, math.ceil(fraction * total - 1e-9))  # 0.07 * 100 is a little above 7
    return _hits(positives, sizes, k) / k * total / float(positives.sum())


def bedroc(labels: object, scores: object, alpha: float = 20.0) -> float:
    """Return the Boltzmann-enhanced discrimination of the receiver operating characteristic: early hits count most.

    J.-F. Truchon, C. I. Bayly, "Evaluating virtual screening methods: good and bad metrics for the 'early recognition'
    problem", Journal of Chemical Information and Modeling 47(2), 2007. A hit at rank r of P weighs
    ``w_r = exp(-alpha r / P)``; the sum over the hits is scaled so that 0 is the worst order and 1 the best, which is
    their equation 36 with the constants cancelled. Tied pairs share the mean weight of their ranks.

    Args:
        labels: 0 or 1.
        scores: The higher, the earlier.
        alpha: How early; at 20 the first 8 % of the list make up 80 % of the score.

    Shapes:
        labels [P], scores [P] -> a number in 0..1.

    Raises:
        InputError: Labels are not 0 or 1, scores are not finite, either class is missing, or alpha is out of range.

    Example:
        >>> bedroc([1, 0, 0], [0.9, 0.5, 0.1]), bedroc([1, 0, 0], [0.1, 0.5, 0.9])
        (1.0, 0.0)
    """
    in_range("alpha", alpha, 1e-6)  # below, the weights differ by rounding alone
    positives, sizes = _tied(labels, scores, needed=(0, 1))
    total, hits = int(sizes.sum()), int(positives.sum())
    weights = np.exp(-alpha * np.arange(total) / total)  # ranks from 0: the factor exp(-alpha / P) cancels
    shared = np.add.reduceat(weights, np.cumsum(sizes) - sizes) / sizes
    best, worst = weights[:hits].sum(), weights[-hits:].sum()
    return float((positives @ shared - worst) / (best - worst))


def measure(labels: object, scores: object) -> dict[str, float] | None:
    """Return all measures of one test fold, or nothing where it has no interaction or nothing else.

    Raises:
        InputError: Labels are not 0 or 1, or scores are not finite.

    Example:
        >>> measures = measure([1, 0, 1, 0], [0.9, 0.8, 0.7, 0.1])
        >>> measures["auc"], measures["precision_at_10"]
        (0.75, 0.2)
        >>> measure([0, 0], [0.9, 0.8]) is None
        True
    """
    positives, sizes = _tied(labels, scores)
    if not 0 < positives.sum() < sizes.sum():
        return None
    return {
        "auc": auc(labels, scores),
        "aupr": aupr(labels, scores),
        "average_precision": average_precision(labels, scores),
        "precision_at_10": precision_at(labels, scores, 10),
        "enrichment_1pct": enrichment_factor(labels, scores, 0.01),
        "bedroc": bedroc(labels, scores),
    }


def _tied(labels: object, scores: object, *, needed: tuple[int, ...] = ()) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return, for each distinct score from the highest on, how many interactions and how many pairs have it."""
    known, ranked = np.asarray(labels), np.asarray(scores, dtype=np.float64)
    if known.ndim != 1 or known.shape != ranked.shape or not len(known):
        raise InputError(f"labels have shape {list(known.shape)}, scores {list(ranked.shape)}; one of each for a pair")
    odd = np.flatnonzero((known != 0) & (known != 1))
    if len(odd):
        raise InputError(f"label {odd[0]} (counted from 0) is {known[odd[0]]}; labels are 0 or 1")
    bad = np.count_nonzero(~np.isfinite(ranked))
    if bad:
        raise InputError(f"{bad} of {len(ranked)} scores are NaN or infinite; they cannot be ranked")
    for label in needed:
        if not (known == label).any():
            raise InputError(f"none of the {len(known)} pairs is labelled {label}; the measure needs at least one")
    group, sizes = np.unique(-ranked, return_inverse=True, return_counts=True)[1:]
    return np.bincount(group, weights=known).astype(np.intp), sizes


def _hits(positives: NDArray[np.intp], sizes: NDArray[np.intp], k: int) -> float:
    """Return the expected number of interactions among the first k pairs."""
    # A straight line within a tied group is the expectation over its orders.
    return float(np.interp(k, np.concatenate(([0], np.cumsum(sizes))), np.concatenate(([0], np.cumsum(positives)))))
