"""How far a learned denoiser is from the best possible one on its training set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.linalg import vector_norm

from stillroom.diffusion.denoiser import Denoiser
from stillroom.diffusion.sampling import Trajectory, trajectory
from stillroom.diffusion.solvers.euler import Euler

__all__ = ["ScoreDeviation", "score_deviation"]


@dataclass(frozen=True)
class ScoreDeviation:
    """A learned denoiser D and the closed form D*, from the same latents: states x and x* of Euler's method.

    Shapes:
        states: [N + 1, B], ``||x*_i - x_i||``.
        outputs: [N, B], ``||D*(x*_i) - D(x_i)||``, each on its own trajectory.
        on_learned: [N, B], ``||D*(x_i) - D(x_i)||``, both on the learned model's.
        on_optimal: [N, B], ``||D(x*_i) - D*(x*_i)||``, both on the closed form's.
    """

    learned: Trajectory
    optimal: Trajectory
    states: Tensor
    outputs: Tensor
    on_learned: Tensor
    on_optimal: Tensor


def score_deviation(
    learned: Denoiser,
    optimal: Denoiser,
    noise: Tensor,
    sigmas: Sequence[float] | Tensor,
    *,
    condition: Any = None,
) -> ScoreDeviation:
    """Compare a learned denoiser with the closed-form one along both of their trajectories.

    Source: Chen, Zhou, Mei, Shen, Chen, Wang, A Geometric Perspective on Diffusion Models, 2023 (arXiv 2305.19947),
    section 5. The score differs by the same vectors divided by ``sigma^2``.

    Args:
        learned: The model.
        optimal: The closed form of its training set.
        noise: Latents of unit variance.
        sigmas: The schedule, falling.
        condition: Passed to both.

    Shapes:
        noise: [B, ...]; sigmas: [N + 1].

    Raises:
        InputError: The schedule is none.
        InputError: A denoiser returned a value that is not finite.

    Example:
        >>> found = score_deviation(lambda x, s, c: 0 * x, lambda x, s, c: 0 * x + 1, torch.ones(1, 4), [4.0, 1.0])
        >>> found.on_learned
        tensor([[2.]])
    """
    own = trajectory(learned, noise, sigmas, Euler(), condition=condition)
    best = trajectory(optimal, noise, sigmas, Euler(), condition=condition)
    levels = noise.new_tensor(own.sigmas)
    with torch.no_grad():
        # One level at a time: the closed form of a large data set needs room for every query.
        best_on_own = torch.stack([optimal(x, s, condition) for x, s in zip(own.states[:-1], levels, strict=False)])
        own_on_best = torch.stack([learned(x, s, condition) for x, s in zip(best.states[:-1], levels, strict=False)])
    return ScoreDeviation(
        own,
        best,
        _apart(best.states, own.states),
        _apart(best.denoised, own.denoised),
        _apart(best_on_own, own.denoised),
        _apart(own_on_best, best.denoised),
    )


def _apart(a: Tensor, b: Tensor) -> Tensor:
    norms: Tensor = vector_norm((a - b).flatten(2), dim=-1)
    return norms
