"""Limits on what an account may ask: one number per account tells all of its token bucket."""

from __future__ import annotations

import math
from collections import OrderedDict

from stillroom.defense.service.store import Limits
from stillroom.errors import InputError

__all__ = ["TokenBuckets", "check_limits", "spend"]


def spend(full_at: float, images: int, limits: Limits, now: float) -> tuple[float, float]:
    """Take tokens out of a bucket that will be full again at ``full_at``.

    A bucket that refills steadily holds ``burst - rate * (full_at - now)`` tokens, so the time at which it is full
    says all (the generic cell rate algorithm, ITU-T I.371).

    Returns:
        When the bucket is full again, and how many seconds the request has to wait: 0 when it fits and was charged,
        infinity when it is larger than the bucket.

    Example:
        >>> spend(0.0, 30, Limits(per_minute=60, burst=30), 100.0)
        (130.0, 0.0)
        >>> spend(130.0, 10, Limits(per_minute=60, burst=30), 100.0)
        (130.0, 10.0)
    """
    rate = limits.per_minute / 60
    lack = min(max(full_at - now, 0.0), limits.burst / rate)  # the clock may have been set back, the burst lowered
    wait = lack + (images - limits.burst) / rate
    if images > limits.burst:
        return full_at, math.inf
    if wait > 1e-9:  # what rounding leaves of nothing
        return full_at, wait
    return now + lack + images / rate, 0.0


def check_limits(images: int, limits: Limits) -> None:
    """Refuse limits and requests that make no sense.

    Raises:
        InputError: One of the numbers is not positive.
    """
    if not (0 < limits.per_minute < math.inf and limits.burst > 0):
        raise InputError(f"limits are {limits.per_minute} a minute, {limits.burst} at once; both must be positive")
    if images < 1:
        raise InputError(f"a request for {images} images cannot be charged")


class TokenBuckets:
    """Buckets of many accounts in memory; one that is full again is forgotten."""

    def __init__(self) -> None:
        self._full_at: OrderedDict[str, float] = OrderedDict()

    def __len__(self) -> int:
        """Count the buckets that are not known to be full."""
        return len(self._full_at)

    def take(self, account: str, images: int, limits: Limits, now: float) -> float:
        """Charge an account and return the seconds it must wait, 0 when the request fits."""
        full_at, wait = spend(self._full_at.pop(account, 0.0), images, limits, now)
        for _ in range(2):  # goes faster than accounts come in
            oldest = next(iter(self._full_at), None)
            if oldest is None or self._full_at[oldest] > now:
                break
            del self._full_at[oldest]
        self._full_at[account] = full_at
        return wait
