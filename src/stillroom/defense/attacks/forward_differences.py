"""Gradients of what only answers: forward differences along random directions, which DFME and MAZE share."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from stillroom.errors import InputError

__all__ = ["forward_differences", "random_directions"]


def random_directions(points: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Draw unit vectors, uniform on the sphere, for every point.

    Shapes:
        points: [N, ...]. Returns [N, count, ...].

    Example:
        >>> drawn = random_directions(torch.zeros(2, 1, 3, 3), 4, torch.Generator().manual_seed(0))
        >>> drawn.shape, bool(drawn.flatten(2).norm(dim=2).sub(1).abs().max() < 1e-6)
        (torch.Size([2, 4, 1, 3, 3]), True)
    """
    drawn = torch.randn((len(points), count, points[0].numel()), generator=generator).to(points)
    unit: Tensor = drawn / drawn.norm(dim=2, keepdim=True)
    return unit.view(len(points), count, *points.shape[1:])


def forward_differences(
    points: Tensor, losses: Callable[[Tensor], Tensor], directions: Tensor, *, epsilon: float
) -> tuple[Tensor, Tensor]:
    """Estimate each point's gradient, ``ĝ = (D / m) Σ_j (l(p + ε u_j) - l(p)) / ε · u_j``, from m + 1 losses.

    D is the number of entries of a point. With directions uniform on the sphere the estimate's mean is the gradient,
    up to ε.

    Args:
        points: p.
        losses: One loss a point; called once, with all N (m + 1) points.
        directions: u, unit vectors.
        epsilon: Length of the step.

    Shapes:
        points: [N, ...]. directions: [N, m, ...]. losses: [M, ...] to [M]. Returns [N, ...] and [N].

    Returns:
        The estimates, and the losses at the points themselves.

    Raises:
        InputError: The directions do not fit the points.

    Example:
        >>> basis = torch.eye(2, dtype=torch.float64)[None]
        >>> gradient, loss = forward_differences(basis[:, 0], lambda p: 3 * p.sum(1), basis, epsilon=0.5)
        >>> gradient.tolist(), loss.tolist()
        ([[3.0, 3.0]], [3.0])
    """
    count = directions.shape[1]
    if directions.shape != (len(points), count, *points.shape[1:]) or count == 0:
        raise InputError(f"directions of shape {list(directions.shape)} do not fit points {list(points.shape)}")
    with torch.no_grad():
        moved = points[:, None] + epsilon * directions
        every = torch.cat([moved, points[:, None]], 1).flatten(0, 1)
        found = losses(every).view(len(points), count + 1)
        at_points = found[:, -1]
        slopes = (found[:, :-1] - at_points[:, None]) / epsilon
        estimate = torch.einsum("nm,nm...->n...", slopes, directions) * points[0].numel() / count
    return estimate, at_points
