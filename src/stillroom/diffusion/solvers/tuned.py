"""A multistep rule whose weights were fitted to a model, on the schedule they were fitted on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from stillroom.diffusion.solvers.plan import Call, Plan, Update, as_sigmas
from stillroom.errors import InputError

__all__ = ["Tuned"]


@dataclass(frozen=True)
class Tuned:
    """``x_{i+1} = a_i x_i + sum_j w_ij D_{i-j}`` with given numbers, every earlier output of the denoiser included.

    All solvers here that make one evaluation per step have this form; here the numbers come from
    :func:`stillroom.diffusion.tuning.fit`.

    Args:
        sigmas: The schedule the numbers belong to; another one is refused.
        rows: One row a step: ``a_i, w_i0, w_i1, ...``, the newest output first; step i has at most i + 1 weights.

    Raises:
        InputError: Schedule and rows do not fit together, or a number is not finite.

    Example:
        >>> Tuned((4.0, 2.0, 1.0), ((0.5, 0.5), (0.5, 0.75, -0.25))).plan((4.0, 2.0, 1.0)).calls[1].update
        Update(state=0.5, weights=(0.75, -0.25))
    """

    sigmas: tuple[float, ...]
    rows: tuple[tuple[float, ...], ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "sigmas", as_sigmas(self.sigmas))
        object.__setattr__(self, "rows", tuple(tuple(float(value) for value in row) for row in self.rows))
        if len(self.rows) != len(self.sigmas) - 1 or len(self.rows) < 2:
            raise InputError(
                f"tuned: {len(self.sigmas)} noise levels and {len(self.rows)} rows; it takes 2 rows or more"
            )
        for i, row in enumerate(self.rows):
            if not 2 <= len(row) <= i + 2:
                raise InputError(f"tuned: row {i} has {len(row)} numbers; it takes a factor and 1 to {i + 1} weights")
            if not all(map(math.isfinite, row)):
                raise InputError(f"tuned: row {i} has a number that is not finite")
        if max(map(len, self.rows)) < 3:
            raise InputError("tuned: no row has two weights; use euler")

    @property
    def name(self) -> str:
        """Name in tables."""
        return "tuned"

    def plan(self, sigmas: Sequence[float]) -> Plan:
        """Return one evaluation per step.

        Raises:
            InputError: The schedule is not the one of the weights.
        """
        if tuple(sigmas) != self.sigmas:
            raise InputError("tuned: the weights belong to another schedule; use its own, or another solver")
        calls = [Call(self.sigmas[i], i, None, Update(row[0], row[1:])) for i, row in enumerate(self.rows)]
        return Plan(self.sigmas, "denoised", tuple(calls))
