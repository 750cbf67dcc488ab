"""DEIS: the derivative is extrapolated by a polynomial in time and integrated against the noise level's speed."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from stillroom.diffusion.schedules import vp_betas, vp_time
from stillroom.diffusion.solvers._options import capped_order, check_choice, check_max_ratio
from stillroom.diffusion.solvers.adams_bashforth import adams_bashforth_weights, lagrange, residual_plan
from stillroom.diffusion.solvers.plan import Plan

__all__ = ["DEIS"]

BETA_D, BETA_MIN = vp_betas(0.002, 80.0)  # of the time variable, whatever the schedule
PUBLISHED_POINTS = 10_000
GAUSS = np.polynomial.legendre.leggauss(64)


@dataclass(frozen=True)
class DEIS:
    """Diffusion exponential integrator sampler: ``x_{i+1} = x_i + sum_j C_ij eps_{i-j}``.

    ``tab``: ``C_ij = integral of (d sigma / dt) L_j(t) dt`` over the step, ``L_j`` the Lagrange polynomials on the last
    ``order`` points in variance-preserving time. ``rhoab``: the same in sigma itself, variable-step Adams-Bashforth.

    Source: Zhang, Chen, Fast Sampling of Diffusion Models with Exponential Integrator, ICLR 2023 (tAB-DEIS and
    rhoAB-DEIS).

    Args:
        order: Number of derivatives used, 1 (Euler) to 4.
        mode: ``tab`` or ``rhoab``.
        quadrature: ``gauss``: to machine precision; ``published``: the mean of 10,000 points as in the published
            code, 1e-4 off. Makes no difference in ``rhoab``.
        max_ratio: Lowers the order where the new step is more than this many times longer than one of the history, in
            the mode's own variable; off by default (see :mod:`stillroom.diffusion.solvers._options`).

    Raises:
        InputError: An option is out of its range.

    Example:
        >>> [len(row) for row in DEIS(3).coefficients((80.0, 20.0, 2.0, 0.1, 0.002))]
        [1, 2, 3, 3]
    """

    order: int = 3
    mode: Literal["tab", "rhoab"] = "tab"
    quadrature: Literal["gauss", "published"] = "gauss"
    max_ratio: float | None = None

    def __post_init__(self) -> None:
        check_choice("deis", "order", self.order, (1, 2, 3, 4))
        check_choice("deis", "mode", self.mode, ("tab", "rhoab"))
        check_choice("deis", "quadrature", self.quadrature, ("gauss", "published"))
        check_max_ratio("deis", self.max_ratio)

    @property
    def name(self) -> str:
        """Name in tables."""
        return f"deis-{self.mode}-{self.order}"

    def coefficients(self, sigmas: Sequence[float]) -> list[tuple[float, ...]]:
        """Return ``C_ij`` for every step i; a row of one is a Euler step."""
        times = vp_time(np.array(sigmas), BETA_D, BETA_MIN).tolist()
        scale: Sequence[float] = times if self.mode == "tab" else sigmas
        rows: list[tuple[float, ...]] = []
        for i, (s, t) in enumerate(itertools.pairwise(sigmas)):
            steps = [scale[i - j] - scale[i - j + 1] for j in range(min(self.order, i + 1))]
            order = capped_order(len(steps), steps, self.max_ratio)
            if order == 1 or t == 0:
                rows.append((t - s,))
            elif self.mode == "rhoab":
                rows.append(adams_bashforth_weights(sigmas, i, order))
            else:
                nodes = np.array([times[i - j] for j in range(order)])
                quadrature = _gauss if self.quadrature == "gauss" else _published
                at, weights = quadrature(s, t)
                rows.append(tuple((lagrange(nodes, at) @ weights).tolist()))
        return rows

    def plan(self, sigmas: Sequence[float]) -> Plan:
        """Return one evaluation per step."""
        return residual_plan(sigmas, self.coefficients(sigmas))


def _gauss(s: float, t: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return times and weights of the integral over sigma from s to t; in ln sigma the integrand is smooth."""
    points, weights = GAUSS
    half = math.log(t / s) / 2
    sigma = s * np.exp(half * (points + 1))
    return vp_time(sigma, BETA_D, BETA_MIN), weights * half * sigma


def _published(s: float, t: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return times and weights of the published rule: both ends count in full, and the divisor is their number."""
    start, end = vp_time(np.array([s, t]), BETA_D, BETA_MIN).tolist()
    times = np.linspace(start, end, PUBLISHED_POINTS)
    exponent = BETA_D * times**2 / 2 + BETA_MIN * times  # alpha-bar = exp(-exponent)
    speed = (BETA_D * times + BETA_MIN) / 2 / np.sqrt(np.exp(-exponent) * -np.expm1(-exponent))
    return times, speed * (end - start) / PUBLISHED_POINTS
