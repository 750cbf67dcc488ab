"""The functions of exponential integrators."""

from __future__ import annotations

import math

__all__ = ["phi"]


def phi(order: int, z: float) -> float:
    """Return ``phi_k(z) = (phi_{k-1}(z) - 1/(k-1)!) / z`` with ``phi_0 = exp``, to full precision.

    Source: Hochbruck, Ostermann, Exponential integrators, Acta Numerica 2010, section 2.1.

    Example:
        >>> round(phi(1, 1.0), 6), round(phi(2, 0.0), 6)
        (1.718282, 0.5)
    """
    if order == 0:
        return math.exp(z)
    if abs(z) < 1:  # the recursion cancels here; the series z^n / (n + k)! does not
        term = total = 1 / math.factorial(order)
        for n in range(1, 20):
            term *= z / (n + order)
            total += term
        return total
    if order == 1:
        return math.expm1(z) / z
    return (phi(order - 1, z) - 1 / math.factorial(order - 1)) / z
