"""Small screening problems for tests: labels with or without new drugs and targets, and a kernel of each side."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from stillroom.screening._checks import Array

__all__ = ["kernel", "problems"]


def kernel(size: int, generator: np.random.Generator) -> Array:
    """Return a positive definite kernel with ones on the diagonal."""
    x = generator.normal(size=(size, 3))
    found: Array = np.exp(-((x[:, None] - x) ** 2).sum(-1) / 4)
    return found


@st.composite
def problems(draw: st.DrawFn, *, new: bool = True) -> tuple[Array, Array, Array]:
    """Draw labels [m, n], with new drugs and targets or without any, and a kernel of each side."""
    m, n, seed = draw(st.integers(2, 7)), draw(st.integers(2, 7)), draw(st.integers(0, 2**32 - 1))
    generator = np.random.default_rng(seed)
    labels = (generator.random((m, n)) < 0.3).astype(float)
    labels[0, 0] = 1
    if new:
        labels[-1], labels[:, -1] = 0, 0
    else:
        labels[np.arange(m), generator.integers(n, size=m)] = 1
        labels[generator.integers(m, size=n), np.arange(n)] = 1
    return labels, kernel(m, generator), kernel(n, generator)
