"""Queries as the defences see them, made of random numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from stillroom.defense.contracts import Queries

SECRET = b"0123456789abcdef"


def ask(
    logits: NDArray[Any],
    *,
    images: NDArray[Any] | None = None,
    features: NDArray[Any] | None = None,
    account: str = "eve",
) -> Queries:
    """Return queries with these logits, each with an image of its own unless they are given."""
    logits = np.asarray(logits)
    if images is None:
        images = np.random.default_rng(len(logits)).integers(0, 256, (len(logits), 3, 4, 4), np.uint8)
    return Queries(account, images, np.zeros((len(logits), 2)) if features is None else features, logits)
