"""The pairs that classifiers of pairs learn from: all known interactions and a sample of the other observed pairs."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from stillroom.errors import InputError
from stillroom.screening._checks import Array, Mask, in_range

__all__ = ["check_both_labels", "check_sampling", "sampled_pairs"]


def sampled_pairs(
    labels: Array, observed: Mask, generator: np.random.Generator, *, negatives: float = 1.0
) -> tuple[NDArray[np.intp], NDArray[np.int64]]:
    """Return all interactions, then observed pairs labelled 0 drawn without replacement, and the labels of both.

    Args:
        labels: Training labels.
        observed: Which pairs may be drawn.
        generator: Draws them.
        negatives: How many for each interaction; all of them where there are fewer.

    Shapes:
        labels [m, n], observed [m, n] -> [P, 2], [P].

    Raises:
        InputError: No observed pair is labelled 0.

    Example:
        >>> pairs, known = sampled_pairs(np.eye(2), np.ones((2, 2), dtype=bool), np.random.default_rng(0))
        >>> pairs[:2].tolist(), known.tolist()
        ([[0, 0], [1, 1]], [1, 1, 0, 0])
    """
    check_both_labels(labels, observed)
    ones = np.argwhere(labels != 0)
    zeros = np.argwhere(observed & (labels == 0))
    count = min(len(zeros), max(1, round(negatives * len(ones))))
    drawn = zeros[generator.choice(len(zeros), count, replace=False)]
    return np.concatenate([ones, drawn]), np.repeat([1, 0], [len(ones), count])


def check_both_labels(labels: Array, observed: Mask) -> None:
    """Refuse labels that leave nothing to tell interactions from.

    Raises:
        InputError: No observed pair is labelled 0.
    """
    if not (observed & (labels == 0)).any():
        raise InputError("no observed pair is labelled 0; the method needs some to tell the interactions from")


def check_sampling(negatives: float, random_state: int, repeats: int = 1) -> None:
    """Refuse values outside their ranges.

    Raises:
        InputError: One is.
    """
    in_range("negatives", negatives, 0, above=True)
    in_range("random_state", random_state, 0, 2**32 - 1, whole=True)
    in_range("repeats", repeats, 1, whole=True)
