"""Numbers along a trajectory: norms, distances to the end, distance from the chord, angles.

Source: Chen, Zhou, Mei, Shen, Chen, Wang, A Geometric Perspective on Diffusion Models, 2023 (arXiv 2305.19947), and
Chen, Zhou, Wang, Lyu, Geometric Regularity in Deterministic Sampling of Diffusion-based Generative Models, J. Stat.
Mech. 2025.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.linalg import vector_norm

from stillroom.errors import InputError

__all__ = [
    "TrajectoryMetrics",
    "check_trajectory",
    "chord_deviation",
    "deviation",
    "falling",
    "single_peak",
    "trajectory_metrics",
]

ROUNDING = 1e-6  # of a float32 norm
WIGGLE = 0.01  # of a peak's height: smaller turns of a curve are not counted as another peak


def chord_deviation(points: Tensor, start: Tensor, end: Tensor) -> Tensor:
    """Return the distance of points from the straight line through a start and an end, sample by sample.

    ``|| (end - a) - ((end - a) . v) v ||`` with ``v = (end - start) / ||end - start||`` (Chen, Zhou, Wang, Shen, Lyu,
    On the Trajectory Regularity of ODE-based Diffusion Sampling, ICML 2024, section 3.2).

    Args:
        points: The points a.
        start: Where the chords start.
        end: Where they end; a chord of length zero gives 0 and a warning.

    Shapes:
        points: [..., B, *sample]; start, end: [B, *sample].
        Returns [..., B].

    Example:
        >>> import torch
        >>> chord_deviation(torch.tensor([[[1.0, 3.0]]]), torch.tensor([[0.0, 0.0]]), torch.tensor([[4.0, 0.0]]))
        tensor([[3.]])
    """
    lead = points.shape[: points.ndim - start.ndim]
    if points.shape[len(lead) :] != start.shape or start.shape != end.shape:
        raise InputError(
            f"points {tuple(points.shape)} must end in the shape of start {tuple(start.shape)} and end "
            f"{tuple(end.shape)}"
        )
    chord = (end - start).flatten(1)
    length = vector_norm(chord, dim=1, keepdim=True)
    if not bool((length > 0).all()):
        warnings.warn("a trajectory ends where it starts, so its deviation from the chord is 0", stacklevel=2)
    unit = chord / length.where(length > 0, 1)
    apart = (end - points).flatten(len(lead) + 1)
    across = apart - (apart * unit).sum(-1, keepdim=True) * unit
    found: Tensor = vector_norm(across, dim=-1) * (length > 0)[:, 0]
    return found


def deviation(trajectory: Tensor) -> Tensor:
    """Return how far the inner points of trajectories are from the chord between their two ends.

    Shapes:
        trajectory: [T, B, ...].
        Returns [B, T - 2]; empty where there is no inner point.

    Example:
        >>> import torch
        >>> deviation(torch.tensor([[[0.0, 0.0]], [[1.0, 3.0]], [[4.0, 0.0]]]))
        tensor([[3.]])
    """
    check_trajectory(trajectory)
    return chord_deviation(trajectory[1:-1], trajectory[0], trajectory[-1]).T


@dataclass(frozen=True)
class TrajectoryMetrics:
    """Numbers along N steps of a batch of B samples, every one an L2 norm over all elements of a sample.

    Shapes:
        norm: [N + 1, B], of the states ``x_i``.
        norm_denoised: [N, B], of the denoiser's outputs ``D_i``.
        norm_derivative: [N, B], of ``(x_i - D_i) / sigma_i``.
        distance: [N + 1, B], of ``x_i`` to the last state.
        distance_denoised: [N, B], of ``D_i`` to the last output.
        deviation: [N - 1, B], of the inner states from the chord (see :func:`deviation`).
        deviation_denoised: [N - 2, B], of the inner outputs from theirs.
        cosine: [N, B], between the derivative and ``x_i - x_N``; 1 where sampling heads for its end already.
    """

    norm: Tensor
    norm_denoised: Tensor
    norm_derivative: Tensor
    distance: Tensor
    distance_denoised: Tensor
    deviation: Tensor
    deviation_denoised: Tensor
    cosine: Tensor


def trajectory_metrics(states: Tensor, denoised: Tensor, derivatives: Tensor) -> TrajectoryMetrics:
    """Measure sampling and denoising trajectories, as :func:`stillroom.diffusion.sampling.trajectory` returns them.

    Shapes:
        states: [N + 1, B, ...]; denoised, derivatives: [N, B, ...].

    Raises:
        InputError: The shapes do not fit together.

    Example:
        >>> import torch
        >>> states = torch.tensor([[[3.0, 4.0]], [[0.0, 1.0]], [[0.0, 0.0]]])
        >>> trajectory_metrics(states, states[1:], states[:-1]).norm.T
        tensor([[5., 1., 0.]])
    """
    check_trajectory(states)
    if denoised.shape != states[1:].shape or derivatives.shape != denoised.shape:
        raise InputError(
            f"{len(states)} states {tuple(states.shape)} need one output and one derivative less, got "
            f"{tuple(denoised.shape)} and {tuple(derivatives.shape)}"
        )
    x, out, slope = states.flatten(2), denoised.flatten(2), derivatives.flatten(2)
    return TrajectoryMetrics(
        norm=vector_norm(x, dim=-1),
        norm_denoised=vector_norm(out, dim=-1),
        norm_derivative=vector_norm(slope, dim=-1),
        distance=vector_norm(x - x[-1], dim=-1),
        distance_denoised=vector_norm(out - out[-1], dim=-1),
        deviation=deviation(x).T,
        deviation_denoised=deviation(out).T if len(out) > 1 else out.new_zeros(0, x.shape[1]),
        cosine=F.cosine_similarity(slope, x[:-1] - x[-1], dim=-1),
    )


def falling(curve: Tensor) -> Tensor:
    """Return the share of steps on which each of the curves [T, B] does not rise (but for rounding), [B].

    Example:
        >>> falling(torch.tensor([[3.0], [2.0], [2.0], [2.5]]))
        tensor([0.6667], dtype=torch.float64)
    """
    return (curve.diff(dim=0) <= ROUNDING * curve[:-1]).double().mean(0)


def single_peak(curve: Tensor) -> Tensor:
    """Return which of the curves [T, B] rise and then fall, but for wiggles of 1 % of their height, as [B] booleans.

    Example:
        >>> single_peak(torch.tensor([[0.0, 0.0], [1.0, 1.0], [2.0, 0.5], [1.0, 2.0]]))
        tensor([ True, False])
    """
    peak, at = curve.max(0)
    index = torch.arange(len(curve), device=curve.device)[:, None]
    # Before the peak nothing may lie below what came before, behind it nothing above.
    drop = (curve.cummax(0).values - curve).where(index <= at, 0).amax(0)
    after = curve.where(index >= at, torch.inf).cummin(0).values
    rise = (curve - after).where(index > at, 0).amax(0)
    return (drop <= WIGGLE * peak) & (rise <= WIGGLE * peak)


def check_trajectory(trajectory: Tensor) -> None:
    """Check that there are two points or more.

    Raises:
        InputError: The tensor is not [T, B, ...] with T >= 2.
    """
    if trajectory.ndim < 3 or len(trajectory) < 2:
        raise InputError(f"a trajectory is [T, B, ...] with at least two points, got {tuple(trajectory.shape)}")
