"""From noise to files: seeded noise, pixels, pictures of many samples."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stillroom.data.split import random_stream
from stillroom.errors import InputError, MissingExtraError
from stillroom.files import write_bytes_atomic

__all__ = ["as_pixels", "check_pictures", "draw_noise", "drawn_class", "read_png", "tile", "write_png"]

_CLASS = 5  # purpose of a random stream; the data's are 0 to 4


def draw_noise(seeds: Iterable[int], shape: tuple[int, ...]) -> Tensor:
    """Draw each sample's noise from a generator of its own, so that it does not depend on the others of its batch.

    Args:
        seeds: One a sample, not negative.
        shape: Of one sample.

    Returns:
        [B, *shape], float32, on the CPU.

    Example:
        >>> torch.equal(draw_noise([5], (1, 2, 2))[0], draw_noise([4, 5], (1, 2, 2))[1])
        True
    """
    return torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds])


def drawn_class(seed: int, classes: int) -> int:
    """Return the class a sample draws; its noise does not depend on it."""
    return int(torch.randint(classes, (), generator=random_stream(seed, _CLASS)))


def as_pixels(images: Tensor) -> Tensor:
    """Return images in -1..1 as bytes, rounded; what lies outside is clipped.

    Shapes:
        images: [B, C, H, W], C is 1 or 3.
        Returns [B, C, H, W], uint8, on the CPU.

    Raises:
        InputError: They are no images.

    Example:
        >>> as_pixels(torch.tensor([-2.0, -1.0, 0.0, 1.0]).view(1, 1, 2, 2)).flatten().tolist()
        [0, 0, 128, 255]
    """
    if images.ndim != 4 or images.shape[1] not in (1, 3):
        raise InputError(f"the model's samples have shape {tuple(images.shape[1:])}; pictures have 1 or 3 channels")
    return ((images.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).cpu()


def check_pictures() -> None:
    """Make sure that pictures can be written, before there are any.

    Raises:
        MissingExtraError: Pillow or torchvision is not installed.
    """
    _pillow()
    _grid()


def tile(pixels: Tensor, columns: int | None = None) -> NDArray[np.uint8]:
    """Lay images side by side, row by row.

    Args:
        pixels: The images.
        columns: Images in a row; as many as make a square by default.

    Shapes:
        pixels: [B, C, H, W], uint8.
        Returns [H', W', 3].

    Raises:
        MissingExtraError: torchvision is not installed.
    """
    columns = columns or math.isqrt(len(pixels) - 1) + 1
    grid = _grid()(pixels, nrow=columns, padding=max(1, pixels.shape[-1] // 16), pad_value=128)
    whole: NDArray[np.uint8] = grid.permute(1, 2, 0).numpy()
    return whole


def write_png(path: Path, pixels: NDArray[np.uint8]) -> None:
    """Write a picture, whole or not at all.

    Args:
        path: The file.
        pixels: [H, W, 1] or [H, W, 3].

    Raises:
        MissingExtraError: Pillow is not installed.
        OutputError: It cannot be written.
    """
    out = io.BytesIO()
    _pillow().fromarray(pixels.squeeze(2) if pixels.shape[2] == 1 else pixels).save(out, format="PNG")
    write_bytes_atomic(path, out.getvalue())


def read_png(path: Path) -> Tensor:
    """Read a picture of 1 or 3 channels, [C, H, W].

    Raises:
        InputError: The file is damaged.
    """
    try:
        with _pillow().open(path) as image:
            pixels = np.array(image)
    except (OSError, SyntaxError, ValueError) as error:  # Pillow calls a broken chunk a SyntaxError
        raise InputError(f"{path} is damaged; remove it and resume") from error
    return torch.from_numpy(pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1))


def _pillow() -> ModuleType:
    try:
        from PIL import Image
    except ImportError:
        raise MissingExtraError("Pillow", "vision") from None
    return Image


def _grid() -> Callable[..., Tensor]:
    try:
        from torchvision.utils import make_grid
    except ImportError:
        raise MissingExtraError("torchvision", "vision") from None
    grid: Callable[..., Tensor] = make_grid
    return grid
