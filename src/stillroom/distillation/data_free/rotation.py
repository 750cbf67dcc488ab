"""The self-supervised augmented task: every image in four orientations, every class split in four."""

from __future__ import annotations

import torch
from torch import Tensor

from stillroom.errors import InputError

__all__ = ["rotation_batch"]


def rotation_batch(images: Tensor, target: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
    """Turn every image by 0, 90, 180 and 270 degrees, counter-clockwise.

    Sample b gives images ``4b + k``, turned k times, with the label ``4 y_b + k`` of ``4C`` joint classes.

    Args:
        images: Square images.
        target: Class of each; without it only images are returned.

    Shapes:
        images: [B, C, H, H]; returns [4B, C, H, H].
        target: [B], int64; returns [4B], int64.

    Returns:
        Images and joint labels.

    Raises:
        InputError: The images are not square.

    Example:
        >>> images, target = rotation_batch(torch.arange(4.0).view(1, 1, 2, 2), torch.tensor([2]))
        >>> images[1].flatten().tolist(), target.tolist()
        ([1.0, 3.0, 0.0, 2.0], [8, 9, 10, 11])
    """
    height, width = images.shape[-2:]
    if height != width:
        raise InputError(f"the images are {height}×{width}; only square images can be turned by 90 degrees")
    turned = torch.stack([torch.rot90(images, k, (2, 3)) for k in range(4)], dim=1).flatten(0, 1)
    if target is None:
        return turned, None
    return turned, (4 * target[:, None] + torch.arange(4, device=target.device)).flatten()
