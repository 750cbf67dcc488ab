"""Checks and casts at the boundary of a loss: Python values and shapes only, so they cost nothing on the device."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from stillroom.errors import InputError

__all__ = ["check_logits", "check_target", "full_precision", "not_negative", "positive", "share"]


def positive(name: str, value: float) -> float:
    """Return ``value`` if it is a finite number above zero.

    Raises:
        InputError: It is not; the message names the argument.

    Example:
        >>> positive("temperature", 4.0)
        4.0
    """
    if not (math.isfinite(value) and value > 0):
        raise InputError(f"{name} must be a finite number above 0, not {value}")
    return value


def not_negative(name: str, value: float) -> float:
    """Return ``value`` if it is a finite number of at least zero.

    Raises:
        InputError: It is not; the message names the argument.
    """
    if not (math.isfinite(value) and value >= 0):
        raise InputError(f"{name} must be a finite number of at least 0, not {value}")
    return value


def share(name: str, value: float) -> float:
    """Return ``value`` if it lies between 0 and 1, both included.

    Raises:
        InputError: It does not; the message names the argument.
    """
    if not 0 <= value <= 1:
        raise InputError(f"{name} must be between 0 and 1, not {value}")
    return value


def full_precision(value: Tensor) -> Tensor:
    """Return half-precision input as float32, anything wider as it is.

    Example:
        >>> full_precision(torch.zeros(2, dtype=torch.bfloat16)).dtype, full_precision(torch.zeros(2).double()).dtype
        (torch.float32, torch.float64)
    """
    return value.float() if value.dtype in (torch.float16, torch.bfloat16) else value


def check_logits(student: Tensor, teacher: Tensor) -> None:
    """Refuse logits that cannot be compared.

    Shapes:
        student, teacher: [B, K] with K >= 2.

    Raises:
        InputError: The shapes differ, are not [B, K], there are no samples, fewer than two classes, or the numbers are
            not floating point.
    """
    for name, logits in (("student", student), ("teacher", teacher)):
        if logits.ndim != 2:
            raise InputError(f"{name} logits must be [B, K], not {list(logits.shape)}")
        if not logits.is_floating_point():
            raise InputError(f"{name} logits must be floating point, not {logits.dtype}")
    if student.shape[1] != teacher.shape[1]:
        raise InputError(
            f"student and teacher logits differ in classes ({student.shape[1]} vs {teacher.shape[1]}); "
            "match the classes first"
        )
    if student.shape[0] != teacher.shape[0]:
        raise InputError(f"student and teacher logits differ in samples ({student.shape[0]} vs {teacher.shape[0]})")
    if student.shape[1] < 2:
        raise InputError(f"a distribution over classes needs at least 2 classes, not {student.shape[1]}")
    if student.shape[0] == 0:
        raise InputError("the batch is empty")


def check_target(logits: Tensor, target: Tensor) -> None:
    """Refuse targets that are not one class index a sample.

    The range is not checked here, since that would read the target on the host at every step; loaders check it once.

    Shapes:
        logits: [B, K].
        target: [B], int64.

    Raises:
        InputError: Another shape or type.
    """
    if target.shape != logits.shape[:1]:
        raise InputError(f"target must be [{logits.shape[0]}], one class a sample, not {list(target.shape)}")
    if target.dtype is not torch.int64:
        raise InputError(f"target must hold int64 class indices, not {target.dtype}")
