"""What Euler's method on the ODE is made of: annealed mean shift, and the jumps that leave it."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from stillroom.diffusion.denoiser import Denoiser
from stillroom.diffusion.solvers.plan import as_sigmas
from stillroom.errors import InputError

__all__ = ["MeanShiftWeights", "mean_shift_weights", "ode_jump"]


def ode_jump(denoiser: Denoiser, states: Tensor, sigmas: Sequence[float] | Tensor, condition: Any = None) -> Tensor:
    """Leave the trajectory at every state for the end: ``D(x_i, sigma_i)``, one Euler step to noise level 0.

    Source: Chen, Zhou, Mei, Shen, Chen, Wang, A Geometric Perspective on Diffusion Models, 2023, section 4.3. At noise
    level 0 a state is its own end.

    Shapes:
        states: [N + 1, B, ...]; sigmas: [N + 1].
        Returns [N + 1, B, ...].

    Raises:
        InputError: There are not as many noise levels as states.

    Example:
        >>> ode_jump(lambda x, sigma, condition: x / (1 + sigma**2), torch.ones(2, 1, 1), [1.0, 0.0]).flatten()
        tensor([0.5000, 1.0000])
    """
    levels = as_sigmas(sigmas)
    if len(levels) != len(states):
        raise InputError(f"{len(states)} states need as many noise levels, got {len(levels)}")
    with torch.no_grad():
        ends = [
            denoiser(x, x.new_tensor(level), condition) if level else x for x, level in zip(states, levels, strict=True)
        ]
    return torch.stack(ends)


class MeanShiftWeights(NamedTuple):
    """Every state of Euler's method as a convex combination: ``x_i = initial_i x_0 + sum_k denoised_ik D_k``.

    Shapes:
        initial: [N + 1].
        denoised: [N + 1, N], lower triangular; a row and its ``initial`` sum to 1.
    """

    initial: Tensor
    denoised: Tensor


def mean_shift_weights(sigmas: Sequence[float] | Tensor) -> MeanShiftWeights:
    """Write the states of Euler's method as convex combinations of the start and the denoiser's outputs.

    One step from s to t is ``(t / s) x + (1 - t / s) D``, so a state keeps ``sigma_i / sigma_0`` of the start and
    ``sigma_i (1 / sigma_k+1 - 1 / sigma_k)`` of output k. Source: Chen et al., 2023 (arXiv 2305.19947), section 4.1.

    Shapes:
        sigmas: [N + 1], falling.

    Raises:
        InputError: It is no schedule.

    Example:
        >>> mean_shift_weights([4.0, 2.0, 1.0]).denoised
        tensor([[0.0000, 0.0000],
                [0.5000, 0.0000],
                [0.2500, 0.5000]], dtype=torch.float64)
    """
    levels = as_sigmas(sigmas)
    kept = [later / earlier for earlier, later in itertools.pairwise(levels)]
    initial, rows = [1.0], [[0.0] * len(kept)]
    for step, share in enumerate(kept):
        initial.append(share * initial[-1])
        rows.append([share * weight for weight in rows[-1]])
        rows[-1][step] = 1 - share
    return MeanShiftWeights(torch.tensor(initial, dtype=torch.float64), torch.tensor(rows, dtype=torch.float64))
