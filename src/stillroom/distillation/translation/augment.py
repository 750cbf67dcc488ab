"""Augmentation of weights: entries left out, Gaussian noise added."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["add_noise", "augment", "mask_entries"]


def mask_entries(weights: Tensor, draw: Tensor, *, prob: float) -> Tensor:
    """Set every entry whose draw exceeds ``1 − prob`` to zero, as Knowledge Translation masks weights.

    Args:
        weights: What to mask.
        draw: Uniform in [0, 1), one number an entry.
        prob: Share of entries to leave out.

    Shapes:
        weights and draw are of one shape, as is the result.

    Example:
        >>> mask_entries(torch.tensor([1.0, 2.0]), torch.tensor([0.2, 0.95]), prob=0.1)
        tensor([1., 0.])
    """
    return weights.masked_fill(draw > 1 - prob, 0)


def add_noise(weights: Tensor, draw: Tensor, *, noise: float) -> Tensor:
    """Return ``weights + noise · draw``, as Knowledge Translation adds noise to weights.

    Args:
        weights: What to perturb.
        draw: Standard normal, one number an entry.
        noise: Standard deviation.

    Shapes:
        weights and draw are of one shape, as is the result.
    """
    return weights + noise * draw


def augment(weights: Tensor, *, prob: float, noise: float) -> Tensor:
    """Mask, then add noise, with numbers from torch's global generator; nothing is drawn for what is switched off."""
    if prob > 0:
        weights = mask_entries(weights, torch.rand_like(weights), prob=prob)
    if noise > 0:
        weights = add_noise(weights, torch.randn_like(weights), noise=noise)
    return weights
