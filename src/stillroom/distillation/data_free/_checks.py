"""Ranges of the hyperparameters that the data-free methods share."""

from __future__ import annotations

import math
from typing import Protocol

from stillroom.errors import InputError

__all__ = ["check_bank", "check_counts", "check_weights"]


class _Banked(Protocol):
    @property
    def bank_rounds(self) -> int: ...
    @property
    def synthesis_batch(self) -> int: ...


def check_counts(method: object, *names: str) -> None:
    """Refuse counts below 1."""
    for name in names:
        if (value := getattr(method, name)) < 1:
            raise InputError(f"{name} is {value}; it must be at least 1")


def check_bank(method: _Banked) -> None:
    """Refuse a bank that would hold nothing, and counts of steps below 1."""
    for name in ("bank_rounds", "synthesis_batch"):
        if (value := getattr(method, name)) < 1:
            raise InputError(f"{name} is {value}: a bank without images teaches nothing; give at least 1")
    check_counts(method, "kd_steps", "g_steps")
    for name in ("initial_g_steps", "latent", "width"):
        if hasattr(method, name):
            check_counts(method, name)
    if (rounds := getattr(method, "initial_rounds", 0)) < 0:
        raise InputError(f"initial_rounds is {rounds}; it must not be negative")
    if rounds > method.bank_rounds:
        raise InputError(
            f"bank_rounds is {method.bank_rounds} and would not hold the {rounds} initial rounds; raise it or lower "
            "initial_rounds"
        )


def check_weights(method: object, *names: str) -> None:
    """Refuse weights that are negative or not finite."""
    for name in names:
        if not 0 <= (value := getattr(method, name)) < math.inf:
            raise InputError(f"{name} is {value}; it must be a finite number of at least 0")
