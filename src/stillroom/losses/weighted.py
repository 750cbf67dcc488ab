"""Sums of weighted loss terms."""

from __future__ import annotations

from torch import Tensor

from stillroom.errors import InputError

__all__ = ["weighted_sum"]


def weighted_sum(*terms: tuple[float, Tensor]) -> Tensor:
    """Return ``Σ weight · term`` without the terms whose weight is exactly 0.

    A left-out term cannot poison the sum (0 · inf is NaN) and sends no zero gradients, under which weight decay would
    still shrink parameters.

    Args:
        terms: Pairs of weight and scalar.

    Raises:
        InputError: All weights are 0.

    Example:
        >>> import torch
        >>> weighted_sum((2.0, torch.tensor(1.5)), (0.0, torch.tensor(float("inf"))))
        tensor(3.)
    """
    weighted = [weight * term for weight, term in terms if weight != 0]
    if not weighted:
        raise InputError("all weights of the loss are 0; give at least one term a weight")
    total = weighted[0]
    for term in weighted[1:]:
        total = total + term
    return total
