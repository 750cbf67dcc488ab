"""Curvature and torsion of curves in three dimensions."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.linalg import vector_norm

from stillroom.errors import InputError

__all__ = ["Shape", "curvature_torsion"]

STRAIGHT = 1e-9  # curvature times length below which a curve has no plane it bends in


@dataclass(frozen=True)
class Shape:
    """What distinguishes curves up to a rotation and a shift.

    Shapes:
        arc_length: [T, B], length from the first point along the chords.
        curvature: [T, B], NaN where the curve does not move.
        torsion: [T, B], NaN where the curve is straight.
    """

    arc_length: Tensor
    curvature: Tensor
    torsion: Tensor


def curvature_torsion(coordinates: Tensor, *, window: int = 11) -> Shape:
    """Measure curvature and torsion by a local cubic fit over the arc length.

    With ``delta = s_j - s_n`` over the points j of a window around n, ``r_j - r_n`` is fitted by least squares on
    ``[delta, delta^2 / 2, delta^3 / 6]``; the coefficients are r', r'', r'''. Then
    ``curvature = |r' x r''| / |r'|^3`` and ``torsion = (r' x r'') . r''' / |r' x r''|^2``. At both ends the window is
    moved inward, so that every point has one.

    Source: Chen, Zhou, Wang, Lyu, Geometric Regularity in Deterministic Sampling of Diffusion-based Generative Models,
    J. Stat. Mech. 2025; published with a window of 101 of 1001 points.
    # Deviation: the fit is by QR in a scaled variable (the published normal equations lose half the digits), and the
    # window at the end holds every point once (the published padding repeats one and misses one).

    Args:
        coordinates: The curves.
        window: Number of points of a fit, odd, at least 5.

    Shapes:
        coordinates: [T, B, 3].

    Raises:
        InputError: The window is even, too small, or longer than the curve.

    Example:
        >>> t = torch.linspace(0, 3, 61, dtype=torch.float64)
        >>> circle = 2 * torch.stack([t.cos(), t.sin(), 0 * t], dim=1)[:, None]
        >>> round(float(curvature_torsion(circle).curvature.mean()), 2)
        0.5
    """
    if coordinates.ndim != 3 or coordinates.shape[2] != 3:
        raise InputError(f"curves are [T, B, 3], got {tuple(coordinates.shape)}")
    points = len(coordinates)
    if window % 2 == 0 or not 5 <= window <= points:
        raise InputError(f"the window is {window}; it must be odd, at least 5 and at most the {points} points")
    r = coordinates.double()
    steps = vector_norm(r.diff(dim=0), dim=-1)
    arc = torch.cat([steps.new_zeros(1, steps.shape[1]), steps.cumsum(0)])  # [T, B]
    middle = torch.arange(points, device=r.device)
    first = (middle - window // 2).clamp(0, points - window)
    inside = first[:, None] + torch.arange(window, device=r.device)  # [T, W]
    delta = (arc[inside] - arc[:, None]).transpose(1, 2)  # [T, B, W]
    rise = (r[inside] - r[:, None]).transpose(1, 2)  # [T, B, W, 3]
    width = delta.abs().amax(-1)
    moves = width > 0
    scaled = delta / width.where(moves, 1)[..., None]
    design = torch.stack([scaled, scaled.square() / 2, scaled**3 / 6], dim=-1)
    q, triangle = torch.linalg.qr(design)
    # Fewer than three distinct places (points that coincide) determine no cubic.
    determined = triangle.diagonal(dim1=-2, dim2=-1).abs().amin(-1) > 1e-10
    triangle = triangle.where(determined[..., None, None], torch.eye(3, dtype=r.dtype, device=r.device))
    fit = torch.linalg.solve_triangular(triangle, q.mT @ rise, upper=True)
    first_, second, third = fit.unbind(-2)  # with respect to the scaled variable
    speed = vector_norm(first_, dim=-1)
    binormal = torch.linalg.cross(first_, second)
    area = vector_norm(binormal, dim=-1)
    curvature = area / speed**3
    torsion = (binormal * third).sum(-1) / area.square()
    known = moves & determined & (speed > 0)
    # In the scaled variable speed is the window's width, and curvature times width is area / speed^2.
    bent = known & (area > STRAIGHT * speed.square())
    nan = torch.nan
    return Shape(arc, curvature.where(known, nan), torsion.where(bent, nan))
