"""What the factorisation methods share: factors to start from, and the options about them."""

from __future__ import annotations

import numpy as np

from stillroom.screening._checks import Array, in_range

__all__ = ["check_factor_options", "initial_factors"]


def initial_factors(drugs: int, targets: int, rank: int, random_state: int) -> tuple[Array, Array]:
    """Return normal factors of variance ``1 / rank``, first those of drugs, then those of targets.

    They come from numpy's legacy generator, whose numbers are the same in every version, as published protocols need.

    Shapes:
        -> [drugs, rank], [targets, rank].

    Example:
        >>> [factors.shape for factors in initial_factors(3, 2, 5, random_state=0)]
        [(3, 5), (2, 5)]
    """
    generator = np.random.RandomState(random_state)
    scale = 1 / np.sqrt(rank)
    by_drug, by_target = (scale * generator.normal(size=(size, rank)) for size in (drugs, targets))
    return by_drug, by_target


def check_factor_options(rank: int, max_iter: int, random_state: int) -> None:
    """Refuse values outside their ranges.

    Raises:
        InputError: One is.
    """
    in_range("rank", rank, 1, whole=True)
    in_range("max_iter", max_iter, 1, whole=True)
    in_range("random_state", random_state, 0, 2**32 - 1, whole=True)
