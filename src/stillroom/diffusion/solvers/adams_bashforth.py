"""Adams-Bashforth methods on the derivatives of past steps: iPNDM and its form for uneven steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from stillroom.diffusion.solvers._options import capped_order, check_choice, check_max_ratio
from stillroom.diffusion.solvers.euler import Euler
from stillroom.diffusion.solvers.plan import JUMP, Call, Plan, Update

__all__ = ["IPNDM", "IPNDMV", "adams_bashforth_weights", "lagrange", "residual_plan"]

EVEN = ((1.0,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))


@dataclass(frozen=True)
class IPNDM:
    """Adams-Bashforth with the weights of even steps, whatever the schedule.

    ``x_{i+1} = x_i + h sum_j c_j eps_{i-j}``; the first steps use what history there is.

    Source: Zhang, Chen, Fast Sampling of Diffusion Models with Exponential Integrator, ICLR 2023, appendix (improved
    PNDM); the even weights go back to Liu, Ren, Lin, Zhao, Pseudo Numerical Methods for Diffusion Models, ICLR 2022.

    Args:
        order: Number of derivatives used, 1 (Euler) to 4.
        max_ratio: Lowers the order where the new step is more than this many times longer than one of the history; off
            by default (see :mod:`stillroom.diffusion.solvers._options`).

    Raises:
        InputError: An option is out of its range.

    Example:
        >>> IPNDM(2).plan((4.0, 2.0, 1.0)).calls[1].update
        Update(state=1.0, weights=(-0.75, 0.125))
    """

    order: int = 4
    max_ratio: float | None = None

    def __post_init__(self) -> None:
        check_choice("ipndm", "order", self.order, (1, 2, 3, 4))
        check_max_ratio("ipndm", self.max_ratio)

    @property
    def name(self) -> str:
        """Name in tables."""
        return f"ipndm-{self.order}"

    def plan(self, sigmas: Sequence[float]) -> Plan:
        """Return one evaluation per step."""
        rows: list[tuple[float, ...]] = []
        for i in range(len(sigmas) - 1):
            h = _steps(sigmas, i, self.order)
            rows.append(tuple(-h[0] * c for c in EVEN[capped_order(len(h), h, self.max_ratio) - 1]))
        return residual_plan(sigmas, rows)


@dataclass(frozen=True)
class IPNDMV:
    """Adams-Bashforth with the weights of the schedule's own, uneven steps.

    ``exact``: ``c_j`` is the mean of the j-th Lagrange polynomial on the last noise levels over the new step, the rule
    of order p; the same as DEIS in its ``rhoab`` mode. ``published``: the weights of the diff-sampler toolbox, which
    agree with these up to order 2; beyond, a parenthesis is misplaced there, so that orders 3 and 4 are not consistent
    (the convergence slope of order 4 is about 1), but these are the numbers behind the published tables.

    Source: Zhou, Chen, Wang, Chen, Fast ODE-based Sampling for Diffusion Models in Around 5 Steps, CVPR 2024 (its
    toolbox); Hairer, Norsett, Wanner, Solving Ordinary Differential Equations I, section III.5 (the exact rule).

    Args:
        order: Number of derivatives used, 1 (Euler) to 4.
        coefficients: ``exact`` or ``published``.
        max_ratio: Lowers the order where the new step is more than this many times longer than one of the history; off
            by default (see :mod:`stillroom.diffusion.solvers._options`).

    Raises:
        InputError: An option is out of its range.

    Example:
        >>> IPNDMV(2).plan((4.0, 2.0, 1.0)).calls[1].update
        Update(state=1.0, weights=(-0.625, 0.0625))
    """

    order: int = 4
    coefficients: Literal["exact", "published"] = "exact"
    max_ratio: float | None = None

    def __post_init__(self) -> None:
        check_choice("ipndm_v", "order", self.order, (1, 2, 3, 4))
        check_choice("ipndm_v", "coefficients", self.coefficients, ("exact", "published"))
        check_max_ratio("ipndm_v", self.max_ratio)

    @property
    def name(self) -> str:
        """Name in tables."""
        return f"ipndm_v-{self.order}" + ("-published" if self.coefficients == "published" else "")

    def plan(self, sigmas: Sequence[float]) -> Plan:
        """Return one evaluation per step."""
        rows: list[tuple[float, ...]] = []
        for i in range(len(sigmas) - 1):
            h = _steps(sigmas, i, self.order)
            order = capped_order(len(h), h, self.max_ratio)
            if self.coefficients == "published":
                rows.append(tuple(-h[0] * c for c in _published(h[:order])))
            else:
                rows.append(adams_bashforth_weights(sigmas, i, order))
        return residual_plan(sigmas, rows)


def residual_plan(sigmas: Sequence[float], rows: Sequence[tuple[float, ...]]) -> Plan:
    """Return the plan of ``x_{i+1} = x_i + sum_j rows[i][j] eps_{i-j}``; a step to 0 returns the denoiser's output."""
    if all(len(row) == 1 for row in rows):
        return Euler().plan(sigmas)
    calls = []
    for i, row in enumerate(rows):
        weights = tuple(weight / sigmas[i - j] for j, weight in enumerate(row))  # of x - D instead of (x - D) / sigma
        calls.append(Call(sigmas[i], i, None, JUMP if sigmas[i + 1] == 0 else Update(1.0, weights)))
    return Plan(tuple(sigmas), "residual", tuple(calls))


def adams_bashforth_weights(sigmas: Sequence[float], i: int, order: int) -> tuple[float, ...]:
    """Return ``integral of L_j over [sigma_i, sigma_{i+1}]``, with ``L_j`` on the noise levels i, ..., i - order + 1.

    Example:
        >>> adams_bashforth_weights((3.0, 2.0, 1.0), 1, 2)
        (-1.5, 0.5)
    """
    nodes = np.array([sigmas[i - j] for j in range(order)])
    points, weights = np.polynomial.legendre.leggauss(2)  # exact to degree 3
    h = sigmas[i + 1] - sigmas[i]
    values = lagrange(nodes, sigmas[i] + h * (points + 1) / 2) @ weights * (h / 2)
    return tuple(values.tolist())


def lagrange(nodes: NDArray[np.float64], at: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the Lagrange basis polynomials of the nodes at the points.

    Shapes:
        nodes: [P]; at: [Q]. Returns [P, Q].

    Example:
        >>> lagrange(np.array([0.0, 1.0]), np.array([0.25]))
        array([[0.75],
               [0.25]])
    """
    basis = np.ones((len(nodes), len(at)))
    for j, node in enumerate(nodes):
        for k, other in enumerate(nodes):
            if k != j:
                basis[j] *= (at - other) / (node - other)
    return basis


def _steps(sigmas: Sequence[float], i: int, order: int) -> list[float]:
    """Return the lengths of step i and of the steps before it, as many as the order can use, newest first."""
    return [sigmas[i - j] - sigmas[i - j + 1] for j in range(min(order, i + 1))]


def _published(h: Sequence[float]) -> tuple[float, ...]:
    """Return the toolbox's weights for steps of lengths h, newest first."""
    if len(h) == 1:
        return (1.0,)
    a, b = h[0], h[1]
    if len(h) == 2:
        return (1 + a / (2 * b), -a / (2 * b))
    c = h[2]
    tau = (1 - a * a / (3 * b * (b + c))) / 2
    weights = [1 + a / (2 * b) + tau, -a / (2 * b) - (1 + b / c) * tau, tau * b / c]
    if len(h) == 3:
        return tuple(weights)
    d = h[3]
    kappa = b * (b + c) / (c * (c + d))
    tau = (1 - a / (3 * (a + b))) / 2 + (1 - a / (2 * (a + b))) * a / (6 * (a + b + c))
    tau *= a * (a + b) * (a + b + c) / (b * (b + c) * (b + c + d))
    return (
        weights[0] + tau,
        weights[1] - (1 + b / c + kappa) * tau,
        weights[2] + (b / c + kappa * (1 + c / d)) * tau,
        -kappa * b / c * tau,
    )
