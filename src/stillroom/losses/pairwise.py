"""Relations between the samples of one batch, computed in at least float32 whatever autocast says."""

from __future__ import annotations

import torch
from torch import Tensor

from stillroom.errors import InputError
from stillroom.losses.checks import full_precision

__all__ = ["check_rows", "gram", "product"]


def product(left: Tensor, right: Tensor) -> Tensor:
    """Return the matrix product in at least float32, also inside an autocast region.

    Similarities are differences of nearly equal numbers and grow with the width of the features: half precision
    rounds them away or overflows.

    Args:
        left: The left factor, batched or not.
        right: The right factor.

    Shapes:
        left: [..., N, D]; right: [..., D, M]; the result is [..., N, M].

    Example:
        >>> ones = torch.ones(2, 3, dtype=torch.bfloat16)
        >>> product(ones, ones.T).dtype
        torch.float32
    """
    with torch.autocast(left.device.type, enabled=False):
        return full_precision(left) @ full_precision(right)


def gram(features: Tensor) -> Tensor:
    """Return the inner products of all pairs of samples, ``G = X Xᵀ`` with X the flattened features.

    Args:
        features: Features of a batch; everything behind the first dimension is flattened.

    Shapes:
        features: [B, ...]; the result is [B, B].

    Example:
        >>> gram(torch.tensor([[1.0, 0.0], [1.0, 2.0]]))
        tensor([[1., 1.],
                [1., 5.]])
    """
    flat = features.flatten(1)
    return product(flat, flat.T)


def check_rows(student: Tensor, teacher: Tensor) -> None:
    """Refuse features that are not one row a sample for the same samples.

    Shapes:
        student: [B, ...]; teacher: [B, ...]; the rest of the shapes may differ.

    Raises:
        InputError: There is no feature dimension, no sample, or the numbers of samples differ.
    """
    for name, features in (("student", student), ("teacher", teacher)):
        if features.ndim < 2 or not features.is_floating_point():
            raise InputError(f"{name} features must be floating point [B, ...], not {list(features.shape)}")
    if len(student) != len(teacher):
        raise InputError(f"student and teacher features differ in samples ({len(student)} vs {len(teacher)})")
    if len(student) == 0:
        raise InputError("the batch is empty")
