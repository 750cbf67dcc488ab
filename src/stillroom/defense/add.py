"""Account-aware distribution discrepancy (ADD): how far a window of queries is from the training data, class by class.

J.-P. Mei, W. Zhang, J. Chen, X. Zhang, T. Zhu, "Defense Against Model Stealing Based on Account-Aware Distribution
Discrepancy", AAAI 2025 (arXiv:2503.12497).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stillroom.defense.contracts import Floats, Ints
from stillroom.errors import InputError

__all__ = ["Reference", "WindowScore", "class_distances", "fit_reference", "frechet_distance", "window_score"]

LARGEST = 4 * 2**30  # bytes of covariances


@dataclass(frozen=True)
class Reference:
    """A multivariate normal for every class, fitted on the features of the training data.

    Shapes:
        mean: [C, d], float64.
        cov: [C, d, d], float64, with divisor N (not N - 1).
    """

    mean: Floats
    cov: Floats

    def __post_init__(self) -> None:
        classes, width = self.mean.shape
        if self.cov.shape != (classes, width, width):
            raise InputError(f"covariances of shape {self.cov.shape} do not fit means of shape {self.mean.shape}")
        if not (np.isfinite(self.mean).all() and np.isfinite(self.cov).all()):
            raise InputError("the reference holds numbers that are not finite; fit it again")

    @cached_property
    def spread(self) -> Floats:
        """Trace of each class' covariance [C]."""
        return np.asarray(np.trace(self.cov, axis1=1, axis2=2))


def fit_reference(
    features: NDArray[np.floating], labels: NDArray[np.integer], num_classes: int, *, shrinkage: float = 0.0
) -> Reference:
    """Fit the class-wise normals.

    Args:
        features: Of the training images without augmentation, network in evaluation mode.
        labels: True classes.
        num_classes: Classes there are; each needs at least one sample.
        shrinkage: Move each covariance by this share towards ``trace / d`` times the identity; the paper does not.

    Shapes:
        features: [N, d]. labels: [N].

    Raises:
        InputError: A class has no sample, a label or a feature is impossible, or ``shrinkage`` is outside 0..1.

    Example:
        >>> fit_reference(np.array([[0.0], [2.0], [5.0]]), np.array([0, 0, 1]), 2).cov.ravel().tolist()
        [1.0, 0.0]
    """
    if not 0.0 <= shrinkage <= 1.0:
        raise InputError(f"shrinkage is {shrinkage}; it must lie in 0..1")
    samples = np.asarray(features, np.float64)
    width = samples.shape[1]
    if num_classes * width * width * 8 > LARGEST:
        raise InputError(
            f"{num_classes} covariances of {width} features take more than 4 GiB; guard a network with fewer features"
        )
    _counts(samples, np.asarray(labels, np.int64), num_classes)
    mean = np.empty((num_classes, width))
    cov = np.empty((num_classes, width, width))
    for c in range(num_classes):
        own = samples[labels == c]
        if len(own) == 0:
            raise InputError(f"class {c} has no training sample; the reference needs one of every class")
        mean[c] = own.mean(0)
        centred = own - mean[c]
        cov[c] = centred.T @ centred / len(own)
        if shrinkage:
            cov[c] = (1 - shrinkage) * cov[c] + shrinkage * np.trace(cov[c]) / width * np.eye(width)
    return Reference(mean, cov)


def frechet_distance(mu1: Floats, sigma1: Floats, mu2: Floats, sigma2: Floats) -> float:
    """Return the squared Fréchet (2-Wasserstein) distance of two normals.

    ``|mu1 - mu2|² + tr(sigma1) + tr(sigma2) - 2 tr((sigma1 sigma2)^½)``, where the last trace is that of the symmetric
    ``(sigma1^½ sigma2 sigma1^½)^½``: two symmetric eigenproblems, no root of a matrix that is not symmetric.

    Shapes:
        mu1, mu2: [d]. sigma1, sigma2: [d, d], symmetric, positive semi-definite.

    Example:
        >>> frechet_distance(np.zeros(2), np.eye(2), np.array([3.0, 0.0]), 4 * np.eye(2))
        11.0
    """
    values, vectors = np.linalg.eigh(sigma1)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(root @ sigma2 @ root).clip(0)).sum()
    return float(((mu1 - mu2) ** 2).sum() + np.trace(sigma1) + np.trace(sigma2) - 2 * cross)


def class_distances(reference: Reference, features: NDArray[np.floating], classes: Ints) -> tuple[Ints, Floats]:
    """Return how often each class was predicted in a window, and its squared Fréchet distance (NaN when absent).

    With the centred features X [n_c, d] of a class, the eigenvalues of ``Sigma_c S_c`` that are not zero are those of
    ``X Sigma_c X^T / n_c``: a symmetric problem of the size of the window, which needs no decomposition of [d, d].

    Shapes:
        features: [n, d]. classes: [n], predicted. Returns [C] and [C].

    Raises:
        InputError: The window is empty, a feature is not finite, or a class is outside 0..C-1.
    """
    counts = _counts(features, classes, len(reference.mean))
    present = counts.nonzero()[0]
    n = counts[present]
    ends = n.cumsum()
    starts = ends - n
    points = np.asarray(features)[classes.argsort(kind="stable")].astype(np.float64)  # class by class
    means = np.add.reduceat(points, starts) / n[:, None]
    centred = points - means.repeat(n, 0)
    apart = reference.mean[present] - means
    found = np.einsum("nd,nd->n", apart, apart) + reference.spread[present]
    found += np.add.reduceat(np.einsum("nd,nd->n", centred, centred), starts) / n
    larger: list[tuple[int, Floats]] = []
    for k, (c, start, end) in enumerate(zip(present.tolist(), starts.tolist(), ends.tolist(), strict=True)):
        if end - start < 2:
            continue
        own = centred[start:end]
        gram = own @ reference.cov[c] @ own.T
        if end - start == 2:  # rows v and -v: the one eigenvalue of gram / 2 that is not zero is the first entry
            found[k] -= 2 * math.sqrt(max(gram[0, 0], 0.0))
        else:
            larger.append((k, gram / (end - start)))
    if larger:
        # One batched eigenproblem: rows and columns of zeros that fill up smaller classes add eigenvalues of zero.
        size = max(len(gram) for _, gram in larger)
        batch = np.zeros((len(larger), size, size))
        for row, (_, gram) in enumerate(larger):
            batch[row, : len(gram), : len(gram)] = gram
        found[[k for k, _ in larger]] -= 2 * np.sqrt(np.linalg.eigvalsh(batch).clip(0)).sum(1)
    distances = np.full(len(counts), np.nan)
    distances[present] = found
    return counts, distances


class WindowScore(NamedTuple):
    """The score of a window, with its evidence.

    Shapes:
        counts: [C], queries by predicted class. distances: [C], NaN for a class that was not predicted.
    """

    score: float
    counts: Ints
    distances: Floats


def window_score(
    reference: Reference, features: NDArray[np.floating], classes: Ints, expected: Floats | None = None
) -> WindowScore:
    """Score a window: the mean of its class distances, weighted by how often each class was predicted.

    Args:
        reference: Class-wise normals of the training features.
        features: Of the window's queries.
        classes: Predicted for them.
        expected: What honest queries have on average, which is taken away from each class distance, see
            :func:`~stillroom.defense.expected.fit_expected`; the paper's score does without.

    Shapes:
        features: [n, d]. classes: [n]. expected: [C, W + 1] with W at least n.

    Raises:
        InputError: See :func:`class_distances`.

    Example:
        >>> reference = fit_reference(np.array([[0.0], [2.0], [5.0]]), np.array([0, 0, 1]), 2)
        >>> window_score(reference, np.array([[0.0], [2.0], [9.0]]), np.array([0, 0, 1])).score
        5.333333333333333
    """
    counts, distances = class_distances(reference, features, classes)
    above = np.nan_to_num(distances)
    if expected is not None:
        above = above - expected[np.arange(len(counts)), counts]
    return WindowScore(float(counts @ above) / len(classes), counts, distances)


def _counts(features: NDArray[np.floating], classes: Ints, num_classes: int) -> Ints:
    """Count the classes [C], or refuse what cannot be counted."""
    if len(classes) == 0 or len(features) != len(classes):
        raise InputError(f"{len(features)} features and {len(classes)} classes; give as many of both, at least one")
    if not np.isfinite(features).all():
        raise InputError("a feature is not finite")
    if classes.min() < 0 or classes.max() >= num_classes:
        raise InputError(f"a class lies outside 0..{num_classes - 1}")
    return np.bincount(classes, minlength=num_classes)
