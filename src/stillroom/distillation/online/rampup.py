"""How fast the terms between peers reach their full weight."""

from __future__ import annotations

import math

from stillroom.errors import InputError
from stillroom.losses.checks import share

__all__ = ["consistency_weight"]


def consistency_weight(epoch0: int, *, length: int, epochs: int, start_fraction: float = 0.0) -> float:
    """Return the weight ``exp(−5 (1 − u / length)²)`` that the terms between peers have in an epoch.

    ``u = clip(e − s E, 0, length)``; before the start (``e < s E``) the weight is 1, as in the released code of OKDDip
    (D. Chen et al., AAAI 2020), and so it is for a length of 0.

    Args:
        epoch0: e, the epoch counted from 0.
        length: Epochs the rise lasts.
        epochs: E, epochs of the training.
        start_fraction: s, the fraction of the training after which the rise begins.

    Raises:
        InputError: The length or the epoch is negative, or the fraction is not between 0 and 1.

    Example:
        >>> [round(consistency_weight(epoch, length=80, epochs=300), 4) for epoch in (0, 40, 80, 299)]
        [0.0067, 0.2865, 1.0, 1.0]
    """
    if length < 0 or epoch0 < 0:
        raise InputError(f"length and epoch of a ramp-up must not be negative, got {length} and {epoch0}")
    start = share("start_fraction", start_fraction) * epochs
    if length == 0 or epoch0 < start:
        return 1.0
    return math.exp(-5.0 * (1.0 - min(epoch0 - start, length) / length) ** 2)
