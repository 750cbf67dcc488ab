"""The Gaussian interaction profile kernel: drugs are alike when they bind the same targets.

T. van Laarhoven, S. B. Nabuurs, E. Marchiori, "Gaussian interaction profile kernels for predicting drug-target
interaction", Bioinformatics 27(21), 2011.
"""

from __future__ import annotations

import numpy as np

from stillroom.errors import InputError
from stillroom.screening._checks import Array

__all__ = ["gip_kernel"]


def gip_kernel(profiles: Array, *, gamma: float = 1.0) -> Array:
    """Return ``K[i, j] = exp(-g ||y_i - y_j||^2)`` with ``g = gamma m / (number of ones)``.

    Only training labels may stand in the profiles: held-out interactions leak through the kernel otherwise.

    Args:
        profiles: Zeros and ones, a row each: the labels for drugs, their transpose for targets.
        gamma: Bandwidth relative to the mean number of interactions.

    Shapes:
        profiles [m, n] -> [m, m].

    Raises:
        InputError: No profile holds a one.

    Example:
        >>> gip_kernel(np.eye(2)).round(4).tolist()
        [[1.0, 0.1353], [0.1353, 1.0]]
    """
    ones = float(profiles.sum())
    if ones <= 0:
        raise InputError("the interaction profiles are empty; the kernel needs at least one known interaction")
    product = profiles @ profiles.T
    norms = np.diagonal(product)
    # In whole numbers, and so exact: equal profiles are at distance 0.
    distance = norms[:, None] + norms - 2 * product
    kernel: Array = np.exp(-(gamma * len(profiles) / ones) * distance)
    return kernel
