"""Interpolation between the latents two images start from."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.linalg import vector_norm

from stillroom.errors import InputError

__all__ = ["interpolate_linear", "interpolate_spherical", "interpolate_variance_preserving"]

PARALLEL = 1e-6  # angle in radians below which the spherical form divides 0 by 0


def interpolate_linear(a: Tensor, b: Tensor, share: Tensor) -> Tensor:
    """Return ``(1 - l) a + l b``: between independent latents its norm shrinks, and images blur.

    Shapes:
        a, b: [B, ...]; share: [L], each from 0 (a) to 1 (b).
        Returns [L, B, ...].

    Example:
        >>> interpolate_linear(torch.zeros(1, 1), torch.ones(1, 1), torch.tensor([0.0, 0.25])).flatten()
        tensor([0.0000, 0.2500])
    """
    share = _shares(a, b, share)
    return (1 - share) * a + share * b


def interpolate_spherical(a: Tensor, b: Tensor, share: Tensor) -> Tensor:
    """Return ``(sin((1 - l) t) a + sin(l t) b) / sin t``, t the angle between the latents (Shoemake, 1985).

    Nearly parallel latents are interpolated linearly.

    Shapes:
        a, b: [B, ...]; share: [L].
        Returns [L, B, ...].

    Example:
        >>> interpolate_spherical(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]]), torch.tensor([0.5]))
        tensor([[[0.7071, 0.7071]]])
    """
    share = _shares(a, b, share)
    flat_a, flat_b = a.flatten(1), b.flatten(1)
    unit_a = flat_a / vector_norm(flat_a, dim=1, keepdim=True)
    unit_b = flat_b / vector_norm(flat_b, dim=1, keepdim=True)
    # Unlike the arc cosine this keeps its digits at small angles.
    angle = 2 * torch.atan2(vector_norm(unit_a - unit_b, dim=1), vector_norm(unit_a + unit_b, dim=1))
    angle = angle.reshape(-1, *(1,) * (a.ndim - 1))
    bent = angle.sin().abs() > PARALLEL
    safe = angle.where(bent, 1)
    curved = (((1 - share) * safe).sin() * a + (share * safe).sin() * b) / safe.sin()
    return torch.where(bent, curved, (1 - share) * a + share * b)


def interpolate_variance_preserving(a: Tensor, b: Tensor, share: Tensor) -> Tensor:
    """Return ``sqrt(1 - l) a + sqrt(l) b``: of independent standard normal latents it is one again.

    Shapes:
        a, b: [B, ...]; share: [L].
        Returns [L, B, ...].

    Example:
        >>> interpolate_variance_preserving(torch.ones(1, 1), torch.ones(1, 1), torch.tensor([0.0, 1.0])).flatten()
        tensor([1., 1.])
    """
    share = _shares(a, b, share)
    return (1 - share).sqrt() * a + share.sqrt() * b


def _shares(a: Tensor, b: Tensor, share: Tensor) -> Tensor:
    if a.shape != b.shape:
        raise InputError(f"latents of one shape are needed, got {tuple(a.shape)} and {tuple(b.shape)}")
    if share.ndim != 1 or not bool(((share >= 0) & (share <= 1)).all()):
        raise InputError("the shares of an interpolation are a list of numbers from 0 to 1")
    return share.to(a).reshape(-1, *(1,) * a.ndim)
