"""Euler's method on the probability-flow ODE; the same as DDIM with eta = 0."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from stillroom.diffusion.solvers.plan import Call, Plan, Update

__all__ = ["Euler"]


@dataclass(frozen=True)
class Euler:
    """``x' = x + (t - s) eps = (t/s) x + (1 - t/s) D(x, s)`` from noise level s to t.

    Source: Song, Meng, Ermon, Denoising Diffusion Implicit Models, ICLR 2021, eq. 13.

    Example:
        >>> Euler().plan((2.0, 1.0)).calls[0].update
        Update(state=0.5, weights=(0.5,))
    """

    @property
    def name(self) -> str:
        """Name in tables."""
        return "euler"

    def plan(self, sigmas: Sequence[float]) -> Plan:
        """Return one evaluation per step."""
        rows = [Update(t / s, (1 - t / s,)) for s, t in itertools.pairwise(sigmas)]
        calls = tuple(Call(s, i, None, row) for i, (s, row) in enumerate(zip(sigmas[:-1], rows, strict=True)))
        return Plan(tuple(sigmas), "denoised", calls)
