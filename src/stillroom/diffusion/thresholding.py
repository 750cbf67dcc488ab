"""Dynamic thresholding of denoised samples."""

from __future__ import annotations

import math

from torch import Tensor

from stillroom.errors import InputError

__all__ = ["dynamic_threshold"]


def dynamic_threshold(x: Tensor, *, quantile: float = 0.995, floor: float = 1.0) -> Tensor:
    """Clamp each sample to its own quantile q of absolute values, at least ``floor``, and divide by q.

    Made for images in -1..1 under strong guidance. Leave it off for latents and for data beyond -1..1, where it more
    than doubles the error. Pass it as ``transform`` to :func:`~stillroom.diffusion.sampling.sample`.

    Source: Saharia et al., Photorealistic Text-to-Image Diffusion Models with Deep Language Understanding (Imagen),
    NeurIPS 2022, section 2.3.

    Args:
        x: Denoised samples.
        quantile: Which quantile of the absolute values, with linear interpolation.
        floor: Smallest q.

    Shapes:
        x: [B, ...]. Returns the same.

    Raises:
        InputError: The quantile is not from 0 to 1, or the floor is not positive.

    Example:
        >>> import torch
        >>> dynamic_threshold(torch.tensor([[-4.0, 0.0, 2.0], [0.5, 0.1, 0.2]]), quantile=0.5)
        tensor([[-1.0000,  0.0000,  1.0000],
                [ 0.5000,  0.1000,  0.2000]])
    """
    if not 0 <= quantile <= 1 or not floor > 0:
        raise InputError(f"quantile must be from 0 to 1 and floor positive, got {quantile:g} and {floor:g}")
    flat = x.abs().flatten(1)
    place = quantile * (flat.shape[1] - 1)
    below = math.floor(place)
    top = flat.topk(flat.shape[1] - below, dim=1).values  # the largest first; the last one is order statistic `below`
    low, high = top[:, -1], top[:, max(-2, -top.shape[1])]
    limit = low.lerp(high, place - below).clamp(min=floor).view(-1, *(1,) * (x.ndim - 1))
    return x.clamp(-limit, limit) / limit
