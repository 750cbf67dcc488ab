"""Augmentation and normalisation of a whole batch at once, on the device it lives on.

Hand-written where torchvision.transforms.v2 has nothing batched: its random crop and flip draw one set of parameters
per call, that is, per batch; here every sample has its own.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["Normaliser", "crop", "crop_padding", "flip"]


def crop_padding(side: int) -> int:
    """Return how many black pixels surround an image before the random crop: 1 for side 8, 2 for 28, 4 for 32.

    Example:
        >>> [crop_padding(side) for side in (8, 28, 32, 64)]
        [1, 2, 4, 8]
    """
    # 4 of 32 is the CIFAR recipe; the characters of the smaller sets nearly touch the border.
    return side // 8 if side >= 32 else max(1, side // 14)


def crop(padded: Tensor, row: Tensor, top: Tensor, left: Tensor, size: tuple[int, int]) -> Tensor:
    """Cut one window of every chosen image, in one gather.

    Args:
        padded: Images with their border.
        row: Which images to cut from.
        top: Upper edge of each window.
        left: Left edge of each window.
        size: Height and width of the windows.

    Shapes:
        padded: [N, C, H', W']. row, top, left: [B], int64. Returns [B, C, H, W].

    Example:
        >>> image = torch.arange(9).view(1, 1, 3, 3)
        >>> crop(image, torch.tensor([0]), torch.tensor([1]), torch.tensor([0]), (2, 2)).flatten().tolist()
        [3, 4, 6, 7]
    """
    height, width = size
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)  # a view of every window: [N, C, top, left, H, W]
    return windows[row, :, top, left]


def flip(images: Tensor, mirrored: Tensor) -> Tensor:
    """Mirror the marked images from left to right.

    Shapes:
        images: [B, C, H, W]. mirrored: [B], bool. Returns [B, C, H, W].

    Example:
        >>> flip(torch.tensor([[[[1, 2]]], [[[1, 2]]]]), torch.tensor([True, False])).flatten().tolist()
        [2, 1, 1, 2]
    """
    return torch.where(mirrored[:, None, None, None], images.flip(-1), images)


class Normaliser:
    """(pixels / 255 - mean) / std in float32, channel by channel.

    Args:
        mean: Mean of every channel, for pixels in 0..1.
        std: Standard deviation likewise.
        device: Where the images will be.

    Shapes:
        Takes [B, C, H, W], uint8; returns [B, C, H, W], float32.

    Example:
        >>> Normaliser((0.5,), (0.5,))(torch.tensor([0, 255], dtype=torch.uint8).view(1, 1, 1, 2)).flatten().tolist()
        [-1.0, 1.0]
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float], device: torch.device | str = "cpu") -> None:
        middle, width = torch.tensor(mean, dtype=torch.float64), torch.tensor(std, dtype=torch.float64)
        # One multiplication and one addition per pixel: x / (255 std) - mean / std.
        self.scale = (1 / (255 * width)).to(device, torch.float32).view(-1, 1, 1)
        self.shift = (-middle / width).to(device, torch.float32).view(-1, 1, 1)

    def __call__(self, images: Tensor) -> Tensor:
        """Normalise a batch."""
        return images.to(torch.float32).mul_(self.scale).add_(self.shift)
