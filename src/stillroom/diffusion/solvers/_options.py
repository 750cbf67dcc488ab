"""Checks of options and the choice of an order that all multistep solvers share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from stillroom.errors import InputError

__all__ = ["capped_order", "check_choice", "check_max_ratio"]


def check_choice(solver: str, option: str, value: Any, choices: Sequence[Any]) -> None:
    """Raise an error unless the value is one of the choices.

    Raises:
        InputError: It is not.
    """
    if isinstance(value, bool) != isinstance(choices[0], bool) or value not in choices:
        known = ", ".join(str(choice) for choice in choices)
        raise InputError(f"{solver}: {option} is {value!r}; choose one of {known}")


def check_max_ratio(solver: str, value: float | None) -> None:
    """Raise an error unless the value is ``None`` or at least 1.

    Raises:
        InputError: It is not.
    """
    if value is not None and (not isinstance(value, int | float) or isinstance(value, bool) or not value >= 1):
        raise InputError(f"{solver}: max_ratio is {value!r}; it must be None or a number of at least 1")


def capped_order(order: int, steps: Sequence[float], max_ratio: float | None) -> int:
    """Return the highest order whose nodes span steps that are even enough.

    Extrapolating from short steps over a long one multiplies the history by about the ratio of their lengths; shorter
    and shorter steps, in contrast, do no harm.

    Args:
        order: Number of nodes wanted.
        steps: Lengths of the step to make and of the steps before it, newest first, in the solver's own variable.
        max_ratio: The step to make may be this much longer than each step between the nodes; ``None``: any length.

    Example:
        >>> capped_order(3, [4.0, 2.0, 1.0], 3.0)
        2
    """
    if max_ratio is None:
        return order
    for past in range(1, order):
        if steps[0] / steps[past] > max_ratio:
            return past
    return order
