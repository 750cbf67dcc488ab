"""Drug-target pairs as rows of features, for classifiers that know no kernels."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from stillroom.screening._checks import Array

__all__ = ["kernel_coordinates", "pair_features", "pair_probabilities"]

_BLOCK = 65536  # pairs whose features are held at once


def kernel_coordinates(similarity: Array, components: int) -> NDArray[np.float32]:
    """Return the leading coordinates of the feature space behind a similarity: ``V diag(l)^(1/2)``.

    B. Schölkopf, A. Smola, K.-R. Müller, "Nonlinear component analysis as a kernel eigenvalue problem", Neural
    Computation 10(5), 1998, without centring. Directions of negative eigenvalues are at 0. A few coordinates are
    faster than the rows of the similarity and generalise better; trees have no use for more digits than float32.

    Args:
        similarity: Symmetric.
        components: How many coordinates, the largest eigenvalues first; fewer where there are fewer rows.

    Shapes:
        similarity [m, m] -> [m, min(m, components)].

    Example:
        >>> np.abs(kernel_coordinates(np.diag([4.0, 1.0]), 1)).tolist()
        [[2.0], [0.0]]
    """
    values, vectors = np.linalg.eigh(similarity)
    leading = slice(None, -components - 1, -1)
    coordinates: NDArray[np.float32] = np.asarray(
        vectors[:, leading] * np.sqrt(np.maximum(values[leading], 0.0)), dtype=np.float32
    )
    return coordinates


def pair_features(
    drugs: NDArray[np.float32], targets: NDArray[np.float32], pairs: NDArray[np.intp]
) -> NDArray[np.float32]:
    """Return the features of the drug beside those of the target.

    Shapes:
        drugs [m, k], targets [n, l], pairs [P, 2] -> [P, k + l].
    """
    return np.hstack([drugs[pairs[:, 0]], targets[pairs[:, 1]]])


def pair_probabilities(
    model: Any, drugs: NDArray[np.float32], targets: NDArray[np.float32], pairs: NDArray[np.intp]
) -> Array:
    """Return the probability of label 1 that a fitted classifier of two classes gives to each pair.

    The features of some pairs at a time are in memory.

    Shapes:
        drugs [m, k], targets [n, l], pairs [P, 2] -> [P].
    """
    scores = np.empty(len(pairs))
    for start in range(0, len(pairs), _BLOCK):
        block = slice(start, start + _BLOCK)
        scores[block] = model.predict_proba(pair_features(drugs, targets, pairs[block]))[:, 1]
    return scores
