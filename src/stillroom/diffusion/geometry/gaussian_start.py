"""Sampling whose first steps follow a Gaussian's score, which needs no network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.linalg import vector_norm

from stillroom.diffusion.denoiser import Denoiser
from stillroom.diffusion.sampling import Trajectory, sample
from stillroom.diffusion.solvers.euler import Euler

__all__ = ["GaussianStart", "gaussian_start"]


@dataclass(frozen=True)
class GaussianStart:
    """A model beside the Gaussian of its data.

    Shapes:
        score_error: [N, B], ``||D - G|| / ||x - D||`` on the model's trajectory: relative error of the score.
        switches: K numbers of steps taken with the Gaussian before the model takes over.
        ends: [K, B, ...], where sampling ends then.
        end_error: [K, B], distance to where the model alone ends, relative to the norm of that.
    """

    score_error: Tensor
    switches: tuple[int, ...]
    ends: Tensor
    end_error: Tensor


def gaussian_start(
    denoiser: Denoiser, gaussian: Denoiser, path: Trajectory, switches: Sequence[int], *, condition: Any = None
) -> GaussianStart:
    """Replace the first steps of Euler's method by a Gaussian's and see where sampling ends.

    Source: Chen, Zhou, Wang, Lyu, Geometric Regularity in Deterministic Sampling of Diffusion-based Generative Models,
    J. Stat. Mech. 2025.

    Args:
        denoiser: The model.
        gaussian: The Gaussian of its data, see :func:`~stillroom.diffusion.geometry.gaussian.fit_gaussian_score`.
        path: The model's own trajectory by Euler's method.
        switches: Numbers of first steps to replace, from 1 to N - 1.
        condition: Passed to the model.

    Example:
        >>> from stillroom.diffusion.geometry.gaussian import GaussianScore
        >>> from stillroom.diffusion.sampling import trajectory
        >>> model = GaussianScore(torch.zeros(4))
        >>> path = trajectory(model, torch.ones(1, 4), [8.0, 4.0, 2.0], Euler())
        >>> gaussian_start(model, model, path, [1]).end_error
        tensor([[0.]])
    """
    levels = path.states.new_tensor(path.sigmas)
    with torch.no_grad():
        guess = torch.stack([gaussian(x, s, None) for x, s in zip(path.states[:-1], levels, strict=False)])
    error = _norm(path.denoised - guess) / _norm(path.states[:-1] - path.denoised)
    noise = path.states[0] / path.sigmas[0]
    ends = []
    for steps in switches:
        x = sample(gaussian, noise, path.sigmas[: steps + 1], Euler())
        rest = path.sigmas[steps:]
        ends.append(sample(denoiser, x / rest[0], rest, Euler(), condition=condition))
    end = path.states[-1]
    found = torch.stack(ends)
    return GaussianStart(error, tuple(switches), found, _norm(found - end) / _norm(end[None]))


def _norm(x: Tensor) -> Tensor:
    norms: Tensor = vector_norm(x.flatten(2), dim=-1)
    return norms
