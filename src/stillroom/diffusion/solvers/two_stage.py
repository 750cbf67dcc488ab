"""Second-order solvers that evaluate the denoiser twice a step."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from stillroom.diffusion.solvers.plan import JUMP, Call, Plan, Update
from stillroom.errors import InputError

__all__ = ["DPM2", "Heun"]


@dataclass(frozen=True)
class Heun:
    """Heun's method: a Euler step from s to t, then the mean of the derivatives at both ends.

    ``x~ = x + h e_1``, ``x' = x + h (e_1 + e_2) / 2`` with ``e_1 = eps(x, s)``, ``e_2 = eps(x~, t)``, ``h = t - s``.
    A step to 0 is Euler's, so that on ``karras_zero`` this is the deterministic sampler of the paper, 2 N - 1
    evaluations.

    Source: Karras, Aittala, Aila, Laine, Elucidating the Design Space of Diffusion-Based Generative Models, NeurIPS
    2022, algorithm 1.

    Example:
        >>> len(Heun().plan((4.0, 2.0, 1.0)).calls), len(Heun().plan((4.0, 2.0, 0.0)).calls)
        (4, 3)
    """

    @property
    def name(self) -> str:
        """Name in tables."""
        return "heun"

    def plan(self, sigmas: Sequence[float]) -> Plan:
        """Return two evaluations per step, and one for a step to 0."""
        calls: list[Call] = []
        for i, (s, t) in enumerate(itertools.pairwise(sigmas)):
            if t == 0:
                calls.append(Call(s, i, None, JUMP))
                continue
            h = t - s
            calls.append(Call(s, i, None, Update(1.0, (h / s,)), hold=True))
            calls.append(Call(t, i, None, Update(1.0, (h / (2 * t), h / (2 * s)))))
        return Plan(tuple(sigmas), "residual", tuple(calls))


@dataclass(frozen=True)
class DPM2:
    """DPM-Solver-2: a Euler step to a point between, whose derivative then carries the whole step.

    ``m = t^r s^(1-r)``, ``x~ = x + (m - s) e_1``, ``x' = x + h (e_2 / (2r) + (1 - 1/(2r)) e_1)`` with
    ``e_2 = eps(x~, m)``. A step to 0 is Euler's.

    Source: Lu et al., DPM-Solver: A Fast ODE Solver for Diffusion Probabilistic Model Sampling in Around 10 Steps,
    NeurIPS 2022, algorithm 1.

    Args:
        r: Where between s (0) and t (1) the second evaluation lies, on the scale of ln sigma.

    Raises:
        InputError: r is not above 0 and at most 1.

    Example:
        >>> [call.sigma for call in DPM2().plan((4.0, 1.0)).calls]
        [4.0, 2.0]
    """

    r: float = 0.5

    def __post_init__(self) -> None:
        if isinstance(self.r, bool) or not isinstance(self.r, int | float) or not 0 < self.r <= 1:
            raise InputError(f"dpm2: r is {self.r!r}; it must be above 0 and at most 1")

    @property
    def name(self) -> str:
        """Name in tables."""
        return "dpm2" if self.r == 0.5 else f"dpm2-r{self.r:g}"

    def plan(self, sigmas: Sequence[float]) -> Plan:
        """Return two evaluations per step, and one for a step to 0."""
        calls: list[Call] = []
        for i, (s, t) in enumerate(itertools.pairwise(sigmas)):
            if t == 0:
                calls.append(Call(s, i, None, JUMP))
                continue
            m, h, share = t**self.r * s ** (1 - self.r), t - s, 1 / (2 * self.r)
            calls.append(Call(s, i, None, Update(1.0, ((m - s) / s,)), hold=True))
            calls.append(Call(m, i, None, Update(1.0, (h * share / m, h * (1 - share) / s))))
        return Plan(tuple(sigmas), "residual", tuple(calls))
