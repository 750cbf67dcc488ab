"""DPM-Solver++: exact for the linear part in ln sigma, a polynomial for the denoiser's output."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from stillroom.diffusion.solvers._options import MAX_RATIO, capped_order, check_choice, check_max_ratio
from stillroom.diffusion.solvers._phi import phi
from stillroom.diffusion.solvers.plan import JUMP, Call, Plan, Update

__all__ = ["DPMpp"]


@dataclass(frozen=True)
class DPMpp:
    """DPM-Solver++ multistep, orders 1 to 3 (1M = Euler, 2M, 3M).

    With ``lambda = -ln sigma``, a step from s to t of length h and the model outputs ``m_0``, ``m_1``, ``m_2``
    (denoised samples): ``x' = (t/s) x + h phi_1(-h) m_0 + h phi_2(-h) D_1 + h phi_3(-h) D_2``, with ``D_1`` and
    ``D_2`` the divided differences that stand for ``h m'`` and ``h^2 m''``; with noise predictions,
    ``x' = x - t h (phi_1(h) m_0 + phi_2(h) D_1 + phi_3(h) D_2)``. Order 2 takes phi_1 / 2 for phi_2. A step to 0
    returns the denoiser's output.

    Source: Lu, Zhou, Bao, Chen, Li, Zhu, DPM-Solver++: Fast Solver for Guided Sampling of Diffusion Probabilistic
    Models, arXiv 2211.01095, 2022, algorithm 2 (2M).

    Args:
        order: 1 to 3.
        predict: What the polynomial stands for: ``denoised`` samples or ``noise``.
        lower_order_final: Lower the order towards the end, to 1 in the last step (not with fewer steps than the order).
        third_order: ``published``: as in the paper's code and in diffusers, where D_2 is half of ``h^2 m''``, so that
            the rule converges with order 2; ``exact``: with order 3.
        max_ratio: Lowers the order where the new step is more than this many times longer than one of the history, in
            lambda; ``None`` never (the default is measured, see :mod:`stillroom.diffusion.solvers._options`).

    Raises:
        InputError: An option is out of its range.

    Example:
        >>> DPMpp(2).plan((4.0, 2.0, 1.0, 0.5)).calls[1].update
        Update(state=0.5, weights=(0.75, -0.25))
    """

    order: int = 3
    predict: Literal["denoised", "noise"] = "denoised"
    lower_order_final: bool = True
    third_order: Literal["published", "exact"] = "published"
    max_ratio: float | None = MAX_RATIO

    def __post_init__(self) -> None:
        check_choice("dpmpp", "order", self.order, (1, 2, 3))
        check_choice("dpmpp", "predict", self.predict, ("denoised", "noise"))
        check_choice("dpmpp", "lower_order_final", self.lower_order_final, (True, False))
        check_choice("dpmpp", "third_order", self.third_order, ("published", "exact"))
        check_max_ratio("dpmpp", self.max_ratio)

    @property
    def name(self) -> str:
        """Name in tables."""
        noise = "-noise" if self.predict == "noise" else ""
        return f"dpmpp-{self.order}m{noise}" + ("-exact" if self.order == 3 and self.third_order == "exact" else "")

    def plan(self, sigmas: Sequence[float]) -> Plan:
        """Return one evaluation per step."""
        calls = []
        for i in range(len(sigmas) - 1):
            update = JUMP if sigmas[i + 1] == 0 else self._update(sigmas, i)
            calls.append(Call(sigmas[i], i, None, update))
        return Plan(tuple(sigmas), "denoised" if self.predict == "denoised" else "residual", tuple(calls))

    def _update(self, sigmas: Sequence[float], i: int) -> Update:
        s, t, count = sigmas[i], sigmas[i + 1], len(sigmas) - 1
        order = final_order(self.order, i, count) if self.lower_order_final else min(self.order, i + 1)
        steps = log_steps(sigmas, i, order)
        order, h = capped_order(order, steps, self.max_ratio), steps[0]
        sign = -1 if self.predict == "denoised" else 1
        weights = [h * phi(1, sign * h), 0.0, 0.0]  # of m_0, m_1, m_2 in the step's positive form
        if order > 1:
            r0 = steps[1] / h
            slope = [1 / r0, -1 / r0, 0.0]  # D_1
            if order == 2:
                weights = [w + weights[0] / 2 * d for w, d in zip(weights, slope, strict=True)]
            else:
                r1 = steps[2] / h
                a, b = slope, [0.0, 1 / r1, -1 / r1]
                bend = [(p - q) / (r0 + r1) for p, q in zip(a, b, strict=True)]  # D_2
                slope = [p + r0 * d for p, d in zip(a, bend, strict=True)]
                double = 2 if self.third_order == "exact" else 1
                second, third = h * phi(2, sign * h), double * h * phi(3, sign * h)
                weights = [w + second * p + third * q for w, p, q in zip(weights, slope, bend, strict=True)]
        if self.predict == "denoised":
            return Update(t / s, tuple(weights[:order]))
        return Update(1.0, tuple(-t * weight / sigmas[i - j] for j, weight in enumerate(weights[:order])))


def final_order(order: int, i: int, count: int) -> int:
    """Return the order of step i of ``count``: rising at the start, falling to 1 at the end.

    Example:
        >>> [final_order(3, i, 5) for i in range(5)], [final_order(3, i, 2) for i in range(2)]
        ([1, 2, 3, 2, 1], [1, 2])
    """
    return i + 1 if i + 1 < order else min(order, count - i)


def log_steps(sigmas: Sequence[float], i: int, order: int) -> list[float]:
    """Return the lengths in lambda of step i and the ``order - 1`` steps before it, newest first."""
    return [math.log(sigmas[i - j] / sigmas[i - j + 1]) for j in range(order)]
