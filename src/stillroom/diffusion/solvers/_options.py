"""Checks of options and the choice of an order that all multistep solvers share.

How uneven may steps be? Extrapolation from short steps over a long one multiplies the history's differences, so the
order can be lowered there (``max_ratio``). Measured as RMSE to a fine reference, relative to no cap, geometric means
over 4 to 10 steps; denoisers: a smooth mixture, the closed form of 200 digits, the same smeared by 0.2. Schedules: GITS
on 61 points (gamma 1.15), whose steps grow up to 14 times in ln sigma, and 40 random subsets of the same points;
worst: the largest RMSE on those, mixture, without and with a cap of 3.

| solver     | GITS, cap 3    | GITS, cap 6    | random, cap 3  | random, cap 6  | worst: no cap, 3 |
|------------|----------------|----------------|----------------|----------------|------------------|
| dpmpp-2m   | 1.00 1.00 0.94 | 1.00 1.00 1.00 | 1.07 1.15 1.00 | 1.03 1.06 0.95 | 1.3, 1.1         |
| dpmpp-3m   | 1.00 1.00 0.76 | 1.00 1.00 0.88 | 0.91 1.11 0.87 | 0.90 1.00 0.86 | 1.6, 1.1         |
| .. exact   | 1.00 1.00 0.66 | 1.00 1.00 0.83 | 0.83 1.06 0.81 | 0.83 0.96 0.82 | 2.2, 1.2         |
| unipc-2    | 1.00 1.00 1.01 | 1.00 1.00 1.00 | 0.98 1.11 0.95 | 0.93 1.06 0.91 | 1.7, 1.1         |
| unipc-3    | 1.00 1.00 0.47 | 1.00 1.00 0.66 | 0.75 1.04 0.79 | 0.73 0.96 0.78 | 5.5, 1.1         |
| ipndm_v-4  | 1.00 1.00 1.00 | 1.00 1.00 1.00 | 1.05 1.01 1.01 | 1.03 1.00 1.00 | 1.0, 1.1         |
| deis-tab-3 | 0.91 1.00 0.97 | 1.00 1.00 1.00 | 1.23 1.29 1.12 | 1.16 1.17 1.07 | 0.9, 1.1         |

Hence 3 for the solvers in ln sigma, where order 3 gains most, and no cap for those in sigma or time, which it does not
help. On the usual schedules a cap of 3 changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from stillroom.errors import InputError

__all__ = ["MAX_RATIO", "capped_order", "check_choice", "check_max_ratio"]

MAX_RATIO = 3.0  # for solvers in ln sigma


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
