"""What a class distance is for honest queries, by class and by how many there are: scores free of the mix of classes.

The distance of n queries of a class falls with n even when they come from the class itself: for one query it is about
twice the trace of the class' covariance, for many it tends to zero. A window of few classes therefore scores low,
honest or not, and one threshold cannot serve both kinds. Taking away what honest queries of the same class and number
have on average leaves what is strange about the queries. This is ours; the paper's score is the one without it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from stillroom.defense.add import Reference, class_distances
from stillroom.defense.contracts import Floats, Ints
from stillroom.errors import InputError

__all__ = ["fit_expected"]

NUMBERS = 16  # at most so many numbers of queries are measured for a class; those between are interpolated
DRAWS = 64  # sets of queries drawn for each class and number


def fit_expected(
    reference: Reference, features: NDArray[np.floating], classes: Ints, *, window: int, seed: int = 0
) -> Floats:
    """Measure the mean class distance of honest queries, for every class and every number of queries up to a window.

    Args:
        reference: Class-wise normals of the training features.
        features: Of held-out honest images, which the model was not trained on.
        classes: Predicted for them.
        window: W, queries a window holds.
        seed: Seed of the draws.

    Shapes:
        features: [N, d]. classes: [N]. Returns [C, W + 1]; entry (c, n) belongs to n queries of class c.

    Raises:
        InputError: No class was predicted at all.

    Example:
        >>> from stillroom.defense.add import fit_reference
        >>> rng = np.random.default_rng(0)
        >>> reference = fit_reference(rng.normal(size=(500, 4)), np.zeros(500, np.int64), 1)
        >>> expected = fit_expected(reference, rng.normal(size=(500, 4)), np.zeros(500, np.int64), window=16)
        >>> bool(expected[0, 1] > 2 * expected[0, 4] > 4 * expected[0, 16])
        True
    """
    if len(classes) == 0:
        raise InputError("there are no held-out queries to measure honest distances on")
    numbers = np.unique(np.geomspace(1, window, min(window, NUMBERS)).round().astype(np.int64))
    stream = np.random.default_rng(seed)
    measured = np.full((len(reference.mean), len(numbers)), np.nan)
    for c in range(len(measured)):
        own = np.flatnonzero(classes == c)
        for column, n in enumerate(numbers.tolist() if len(own) else ()):
            drawn = (stream.choice(own, n, replace=n > len(own)) for _ in range(DRAWS))
            measured[c, column] = np.mean([class_distances(reference, features[i], classes[i])[1][c] for i in drawn])
    # A class that was never predicted: as far, for its spread, as the others are on average.
    scale = np.maximum(reference.spread, np.finfo(float).tiny)[:, None]
    usual = np.nanmean(measured / scale, 0)
    measured = np.where(np.isnan(measured), usual * scale, measured)
    every = np.arange(window + 1)
    return np.stack([np.interp(every, numbers, row) for row in measured])
