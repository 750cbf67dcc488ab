"""A multistep solver whose weights are fitted to a model's own trajectories instead of derived from polynomials."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from stillroom.diffusion.denoiser import Denoiser
from stillroom.diffusion.solvers.plan import Call, Plan, Update
from stillroom.errors import InputError

__all__ = ["Fitted", "fit_multistep"]


@dataclass(frozen=True)
class Fitted:
    """``x' = a_i x + sum_j b_ij D_{i-j}`` with numbers of its own for every step of one schedule.

    Args:
        rows: For each step the weight of the state, then those of the denoised samples, newest first; step i may read
            i + 1 of them.

    Raises:
        InputError: A row is empty or reads more than there is.

    Example:
        >>> Fitted(((0.5, 0.5),)).plan((2.0, 1.0)).calls[0].update
        Update(state=0.5, weights=(0.5,))
    """

    rows: tuple[tuple[float, ...], ...]

    def __post_init__(self) -> None:
        rows = tuple(tuple(float(number) for number in row) for row in self.rows)
        object.__setattr__(self, "rows", rows)
        for step, row in enumerate(rows):
            if not 2 <= len(row) <= step + 2:
                raise InputError(f"row {step} of a fitted solver has {len(row)} numbers; it may have 2 to {step + 2}")

    @property
    def name(self) -> str:
        """Name in tables."""
        return f"fitted-{max(map(len, self.rows)) - 1}"

    def plan(self, sigmas: Sequence[float]) -> Plan:
        """Return one evaluation per step.

        Raises:
            InputError: The schedule has another number of steps than the solver was fitted for.
        """
        if len(sigmas) != len(self.rows) + 1:
            raise InputError(
                f"the solver was fitted for {len(self.rows)} steps, the schedule has {len(sigmas) - 1}; use its own"
            )
        calls = (Call(sigmas[i], i, None, Update(row[0], row[1:])) for i, row in enumerate(self.rows))
        return Plan(tuple(sigmas), "denoised", tuple(calls))


def fit_multistep(
    denoiser: Denoiser,
    x: Tensor,
    sigmas: Sequence[float],
    targets: Sequence[Tensor],
    *,
    order: int = 4,
    ridge: float = 1e-6,
    condition: Any = None,
) -> tuple[Fitted, Tensor]:
    """Fit the weights step by step, each by least squares to where a fine solution goes.

    The state a step starts from is the one the fitted steps before it lead to, so a step also mends what they left.

    Args:
        denoiser: The model.
        x: States at the first noise level.
        sigmas: The schedule.
        targets: The fine solution's states at every noise level but the first.
        order: Denoised samples a step may read.
        ridge: Weight of the numbers' own size, relative to that of what they multiply.
        condition: Passed to every evaluation.

    Shapes:
        x: [B, ...]; targets: N times [B, ...].

    Returns:
        The solver, and where it ends from ``x``, [B, ...].

    Example:
        >>> x = torch.randn(8, 3)
        >>> solver, end = fit_multistep(lambda x, sigma, condition: x / 2, x, (2.0, 1.0), [3 * x])
        >>> bool((end - 3 * x).abs().max() < 1e-3)
        True
    """
    rows: list[tuple[float, ...]] = []
    history: list[Tensor] = []
    for sigma, target in zip(sigmas[:-1], targets, strict=True):
        history.insert(0, denoiser(x, torch.tensor(sigma, dtype=x.dtype, device=x.device), condition))
        del history[order:]
        parts = [x, *history]
        columns = torch.stack([part.flatten() for part in parts]).double()
        scale = columns.norm(dim=1, keepdim=True).clamp(min=1e-30)
        columns = columns / scale
        gram = columns @ columns.T + ridge * torch.eye(len(parts), dtype=torch.float64, device=x.device)
        weights = torch.linalg.solve(gram, columns @ target.flatten().double()) / scale[:, 0]
        rows.append(tuple(weights.tolist()))
        x = torch.einsum("k,k...->...", weights.to(x.dtype), torch.stack(parts))
    return Fitted(tuple(rows)), x
