"""UniPC: a predictor like DPM-Solver++, corrected by the evaluation that the next step makes anyway."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from stillroom.diffusion.solvers._options import MAX_RATIO, capped_order, check_choice, check_max_ratio
from stillroom.diffusion.solvers._phi import phi
from stillroom.diffusion.solvers.dpmpp import final_order, log_steps
from stillroom.diffusion.solvers.plan import JUMP, Call, Plan, Update

__all__ = ["UniPC"]


@dataclass(frozen=True)
class UniPC:
    """Unified predictor-corrector of order 1 to 3; the corrector adds one order and no evaluation.

    With ``lambda = -ln sigma``, the last outputs ``m_k`` at ``r_k`` (in units of the step h from the newest), and the
    output ``m_t`` at the predicted point: ``x' = base + c B (sum_k rho_k (m_k - m_0) / r_k + rho_p (m_t - m_0))``, base
    the exponential Euler step; the rho solve ``sum_k r_k^(j-1) rho_k = j! g_j / B`` for j = 1..p. The last step is not
    corrected. A step to 0 returns the denoiser's output.

    Source: Zhao, Bai, Rao, Zhou, Lu, UniPC: A Unified Predictor-Corrector Framework for Fast Sampling of Diffusion
    Models, NeurIPS 2023.

    Args:
        order: 1 to 3, of the predictor.
        variant: ``bh1``: B = h; ``bh2``: B = exp(h) - 1.
        predict: What the polynomial stands for: ``denoised`` samples or ``noise``.
        lower_order_final: Lower the order towards the end, to 1 in the last step (not with fewer steps than the order).
        max_ratio: Lowers the order where the new step is more than this many times longer than one of the history, in
            lambda; ``None`` never (the default is measured, see :mod:`stillroom.diffusion.solvers._options`).

    Raises:
        InputError: An option is out of its range.

    Example:
        >>> [call.correct is not None for call in UniPC(3).plan((8.0, 4.0, 2.0, 1.0)).calls]
        [False, True, True]
    """

    # Deviation: the published code evaluates the denoiser once more in the last step if there are fewer steps than
    # the order; this is left out.

    order: int = 3
    variant: Literal["bh1", "bh2"] = "bh2"
    predict: Literal["denoised", "noise"] = "denoised"
    lower_order_final: bool = True
    max_ratio: float | None = MAX_RATIO

    def __post_init__(self) -> None:
        check_choice("unipc", "order", self.order, (1, 2, 3))
        check_choice("unipc", "variant", self.variant, ("bh1", "bh2"))
        check_choice("unipc", "predict", self.predict, ("denoised", "noise"))
        check_choice("unipc", "lower_order_final", self.lower_order_final, (True, False))
        check_max_ratio("unipc", self.max_ratio)

    @property
    def name(self) -> str:
        """Name in tables."""
        return f"unipc-{self.order}-{self.variant}" + ("-noise" if self.predict == "noise" else "")

    def plan(self, sigmas: Sequence[float]) -> Plan:
        """Return one evaluation per step."""
        count = len(sigmas) - 1
        calls, correct = [], None
        for i, (s, t) in enumerate(itertools.pairwise(sigmas)):
            last = i == count - 1
            if t == 0:
                calls.append(Call(s, i, correct, JUMP))
                break
            order = final_order(self.order, i, count) if self.lower_order_final else min(self.order, i + 1)
            order = capped_order(order, log_steps(sigmas, i, order), self.max_ratio)
            update = self._update(sigmas, i, order, corrector=False)
            calls.append(Call(s, i, correct, update, hold=not last))
            correct = self._update(sigmas, i, order, corrector=True)  # made by the next call, with its evaluation
        return Plan(tuple(sigmas), "denoised" if self.predict == "denoised" else "residual", tuple(calls))

    def _update(self, sigmas: Sequence[float], i: int, order: int, *, corrector: bool) -> Update:
        s, t = sigmas[i], sigmas[i + 1]
        steps = log_steps(sigmas, i, order)
        h = steps[0]
        r = [-sum(steps[1 : k + 1]) / h for k in range(1, order)]
        z = -h if self.predict == "denoised" else h
        scale = z if self.variant == "bh1" else math.expm1(z)  # B
        weights = dict.fromkeys(range(-1, order), 0.0)  # of m_t (-1), m_0, m_1, ..., as multiples of -c
        weights[0] = math.expm1(z)
        for k, rho in enumerate(self._solve([*r, 1.0] if corrector else r, z, scale), start=1):
            past = k < order
            weight = scale * (rho / r[k - 1] if past else rho)
            weights[k if past else -1] += weight
            weights[0] -= weight
        ages = range(-1 if corrector else 0, order)
        if self.predict == "denoised":
            return Update(t / s, tuple(-weights[age] for age in ages))
        return Update(1.0, tuple(-t * weights[age] / sigmas[i - age] for age in ages))

    @staticmethod
    def _solve(r: Sequence[float], z: float, scale: float) -> list[float]:
        """Return the rho of the nodes r; for a single node the paper fixes 1/2."""
        if len(r) < 2:
            return [0.5] * len(r)
        right = [math.factorial(j) * z * phi(j + 1, z) / scale for j in range(1, len(r) + 1)]
        solution: list[float] = np.linalg.solve(np.vander(r, increasing=True).T, right).tolist()
        return solution
