"""Honest but imperfect images: noise, blur, weather on the lens, cheap cameras, five severities each.

Simple versions of the corruptions of D. Hendrycks, T. Dietterich, "Benchmarking Neural Network Robustness to Common
Corruptions and Perturbations", ICLR 2019; the severities are ours, chosen for images of 32 pixels, and are not those of
CIFAR-10-C.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from stillroom.data.split import random_stream
from stillroom.errors import InputError, MissingExtraError, unknown_name

__all__ = ["CORRUPTIONS", "corrupt"]

Pixels = NDArray[np.uint8]  # [N, C, H, W]

_CORRUPTION = 20  # purpose of the random streams


def corrupt(images: Pixels, name: str, severity: int, *, seed: int = 0) -> Pixels:
    """Return images [N, C, H, W] corrupted in one way, the same for the same seed.

    Args:
        images: Clean, 8-bit.
        name: One of :data:`CORRUPTIONS`.
        severity: 1 (barely visible) to 5 (hard to recognise).
        seed: Of what is random in it.

    Raises:
        InputError: The corruption or the severity does not exist, or the images are not 8-bit.

    Example:
        >>> grey = np.full((2, 3, 8, 8), 128, np.uint8)
        >>> int(corrupt(grey, "brightness", 1)[0, 0, 0, 0])
        154
    """
    if name not in CORRUPTIONS:
        raise unknown_name("corruption", name, CORRUPTIONS)
    if severity not in (1, 2, 3, 4, 5):
        raise InputError(f"severity is {severity}; it must be 1, 2, 3, 4 or 5")
    if images.dtype != np.uint8 or images.ndim != 4:
        raise InputError(f"corruptions take 8-bit images [N, C, H, W], not {images.dtype} of shape {images.shape}")
    corruption, levels = _TABLE[name]
    stream = random_stream(seed, _CORRUPTION, CORRUPTIONS.index(name))
    clean = torch.from_numpy(np.ascontiguousarray(images)).float() / 255
    found = corruption(clean, levels[severity - 1], stream)
    return (found * 255).round().clamp(0, 255).to(torch.uint8).numpy()


def _noise(images: Tensor, level: float, stream: torch.Generator) -> Tensor:
    return images + level * torch.randn(images.shape, generator=stream)


def _blur(images: Tensor, level: float, stream: torch.Generator) -> Tensor:
    reach = math.ceil(3 * level)
    kernel = torch.exp(-(torch.arange(-reach, reach + 1) ** 2) / (2 * level**2))
    kernel = (kernel / kernel.sum()).view(1, 1, 1, -1)
    count, channels, height, width = images.shape
    planes = F.pad(images, (reach, reach, reach, reach), mode="replicate").flatten(0, 1)[:, None]
    return F.conv2d(F.conv2d(planes, kernel), kernel.mT).view(count, channels, height, width)


def _brightness(images: Tensor, level: float, stream: torch.Generator) -> Tensor:
    return images + level


def _contrast(images: Tensor, level: float, stream: torch.Generator) -> Tensor:
    mean = images.mean((1, 2, 3), keepdim=True)
    return mean + level * (images - mean)


def _jpeg(images: Tensor, level: float, stream: torch.Generator) -> Tensor:
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingExtraError("pillow", "vision") from error
    found = torch.empty_like(images)
    for position, image in enumerate((images * 255).round().to(torch.uint8)):
        file = io.BytesIO()
        grey = len(image) == 1
        Image.fromarray(image[0].numpy() if grey else image.permute(1, 2, 0).numpy()).save(
            file, "JPEG", quality=int(level)
        )
        pixels = torch.from_numpy(np.array(Image.open(file))).float() / 255
        found[position] = pixels[None] if grey else pixels.permute(2, 0, 1)
    return found


def _rotation(images: Tensor, level: float, stream: torch.Generator) -> Tensor:
    angle = torch.deg2rad(level * (2 * torch.rand(len(images), generator=stream) - 1))
    return _moved(images, angle.cos(), angle.sin(), torch.zeros(len(images), 2))


def _shift(images: Tensor, level: float, stream: torch.Generator) -> Tensor:
    offset = 2 * level * (2 * torch.rand(len(images), 2, generator=stream) - 1)  # the image spans -1..1
    return _moved(images, torch.ones(len(images)), torch.zeros(len(images)), offset)


def _resolution(images: Tensor, level: float, stream: torch.Generator) -> Tensor:
    size = list(images.shape[2:])
    small = [max(round(side * level), 1) for side in size]
    return F.interpolate(F.interpolate(images, small, mode="bilinear", antialias=True), size, mode="bilinear")


def _moved(images: Tensor, cos: Tensor, sin: Tensor, offset: Tensor) -> Tensor:
    matrix = torch.stack([torch.stack([cos, -sin], 1), torch.stack([sin, cos], 1)], 1)
    grid = F.affine_grid(torch.cat([matrix, offset[:, :, None]], 2), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)


_TABLE: dict[str, tuple[Callable[[Tensor, float, torch.Generator], Tensor], tuple[float, ...]]] = {
    "noise": (_noise, (0.02, 0.04, 0.06, 0.09, 0.12)),  # standard deviation, of pixels in 0..1
    "blur": (_blur, (0.4, 0.6, 0.8, 1.0, 1.4)),  # pixels
    "brightness": (_brightness, (0.1, 0.17, 0.24, 0.31, 0.4)),  # added
    "contrast": (_contrast, (0.8, 0.65, 0.5, 0.35, 0.2)),  # left of it
    "jpeg": (_jpeg, (60, 40, 25, 15, 8)),  # quality
    "rotation": (_rotation, (5, 10, 15, 22, 30)),  # degrees at most
    "shift": (_shift, (0.04, 0.08, 0.12, 0.17, 0.22)),  # of the side, at most
    "resolution": (_resolution, (0.8, 0.65, 0.5, 0.4, 0.3)),  # of the pixels of a side
}
CORRUPTIONS = tuple(_TABLE)
