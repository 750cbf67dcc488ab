"""What the defences that alter answers without watching accounts share."""

from __future__ import annotations

import numpy as np

from stillroom.defense.contracts import Answers, Floats

__all__ = ["normalised", "perturbed"]

_SAME = 1e-6  # a client that gets float32 sees no difference below


def perturbed(clean: Floats, answered: Floats) -> Answers:
    """Return the answers of a defence that scores nothing; an answer counts as altered when a client could tell.

    Shapes:
        clean, answered: [B, K].

    Example:
        >>> perturbed(np.array([[0.5, 0.5], [1.0, 0.0]]), np.array([[0.5, 0.5], [0.9, 0.1]])).altered.tolist()
        [False, True]
    """
    return Answers(answered, np.abs(answered - clean).max(1) > _SAME, np.full(len(clean), np.nan))


def normalised(values: Floats) -> Floats:
    """Divide rows of numbers of at least 0 by their sums; a row of zeros, which says nothing, becomes uniform.

    Shapes:
        values: [B, K].

    Example:
        >>> normalised(np.array([[3.0, 1.0], [0.0, 0.0]])).tolist()
        [[0.75, 0.25], [0.5, 0.5]]
    """
    sums = values.sum(1, keepdims=True)
    empty = sums == 0
    return np.asarray(np.where(empty, 1 / values.shape[1], values / np.where(empty, 1, sums)))
