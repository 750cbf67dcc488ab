"""Trajectories seen in three dimensions, and how many dimensions they need."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.linalg import vector_norm

from stillroom.diffusion.geometry.metrics import check_trajectory
from stillroom.errors import InputError

__all__ = ["Projection", "project3d"]


@dataclass(frozen=True)
class Projection:
    """Trajectories in their own three dimensions: the chord and the two principal directions across it.

    Shapes:
        coordinates: [T, B, 3], of ``x_i - x_N`` along the chord and the two directions; the end is the origin.
        axes: [B, 3, D], the three orthonormal directions.
        explained_orthogonal: [B, K], share of the variance across the chord that 1, 2, ... K directions explain.
        explained_full: [B, K], the same of the whole trajectory, by its own principal directions.
        reconstruction_error: [4, B, T], L2 error of every point rebuilt from the chord and 0, 1, 2, 3 directions.
    """

    coordinates: Tensor
    axes: Tensor
    explained_orthogonal: Tensor
    explained_full: Tensor
    reconstruction_error: Tensor


def project3d(trajectory: Tensor, *, components: int = 8) -> Projection:
    """Project every trajectory to the three dimensions it varies most in, its chord being the first.

    Source: Chen, Zhou, Wang, Shen, Lyu, On the Trajectory Regularity of ODE-based Diffusion Sampling, ICML 2024,
    section 3.2. The directions are exact singular vectors, not those of a randomised PCA. Their signs make the middle
    point (index T // 2) negative along the chord, positive along the second and negative along the third direction.

    Args:
        trajectory: The points, first to last.
        components: Number of explained variances; fewer where a trajectory has fewer points or elements.

    Shapes:
        trajectory: [T, B, ...].

    Raises:
        InputError: A trajectory ends where it starts, or has fewer than three elements per sample.

    Example:
        >>> t = torch.linspace(0, 1, 9, dtype=torch.float64)
        >>> circle = torch.stack([t.cos(), t.sin(), 0 * t, 0 * t], dim=1)[:, None]
        >>> project3d(circle).explained_full[0, :2].round(decimals=3)
        tensor([0.9800, 1.0000], dtype=torch.float64)
    """
    check_trajectory(trajectory)
    if trajectory[0, 0].numel() < 3:
        raise InputError(f"three dimensions need samples of three elements, got {tuple(trajectory.shape[2:])}")
    parts = [_project_one(points.flatten(1).double(), components) for points in trajectory.unbind(1)]
    coordinates, axes, orthogonal, full, error = (torch.stack(values) for values in zip(*parts, strict=True))
    return Projection(coordinates.transpose(0, 1), axes, orthogonal, full, error.transpose(0, 1))


def _project_one(x: Tensor, components: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    chord = x[-1] - x[0]
    length = vector_norm(chord)
    if not bool(length > 0):
        raise InputError("a trajectory ends where it starts, so it has no chord to be seen along")
    chord = chord / length
    across = x - (x @ chord)[:, None] * chord
    across = across - across.mean(0)
    variance, directions = _principal(across, 3)
    # Householder QR keeps three axes orthonormal even where a trajectory is straight and its directions are noise.
    axes = torch.linalg.qr(torch.cat([chord[:, None], directions.T], dim=1)).Q.T
    axes = torch.cat([chord[None], axes[1:3]])
    coordinates = (x - x[-1]) @ axes.T
    middle = coordinates[len(x) // 2]
    wanted = middle.new_tensor([-1.0, 1.0, -1.0])
    sign = torch.where(middle * wanted < 0, -1.0, 1.0)  # a coordinate of 0 keeps its sign
    rest = [across]
    for direction in directions:
        rest.append(rest[-1] - (rest[-1] @ direction)[:, None] * direction)
    errors = vector_norm(torch.stack(rest), dim=-1)
    if len(errors) < 4:  # two points have two singular vectors
        errors = torch.cat([errors, errors[-1:].expand(4 - len(errors), -1)])
    full, _ = _principal(x - x.mean(0), 0)
    return (
        coordinates * sign,
        axes * sign[:, None],
        _explained(variance, components),
        _explained(full, components),
        errors,
    )


def _principal(centred: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return all squared singular values, falling, and the first right singular vectors as rows."""
    if centred.shape[1] <= len(centred):
        _, singular, right = torch.linalg.svd(centred, full_matrices=False)
        return singular.square(), right[:count]
    squared, left = torch.linalg.eigh(centred @ centred.T)
    directions = torch.linalg.qr(centred.T @ left.flip(1)[:, :count]).Q.T if count else centred[:0]
    return squared.flip(0).clamp_min(0), directions


def _explained(variance: Tensor, components: int) -> Tensor:
    total = variance.sum()
    share = variance[:components].cumsum(0) / total.where(total > 0, 1)
    return share.where(total > 0, 1)  # nothing to explain
