"""Differentiable views of synthetic images: shifted, mirrored or zoomed, and normalised as the teacher expects."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from stillroom.data.augment import crop_padding, flip
from stillroom.data.options import Augment

__all__ = ["Views", "shift", "zoom"]


def shift(images: Tensor, down: Tensor, right: Tensor) -> Tensor:
    """Move every image by whole pixels, with black where nothing was: a random crop of the padded image.

    Shapes:
        images: [B, C, H, W]. down, right: [B], int64. Returns [B, C, H, W].

    Example:
        >>> shift(torch.ones(1, 1, 2, 2), torch.tensor([1]), torch.tensor([0])).flatten().tolist()
        [0.0, 0.0, 1.0, 1.0]
    """
    # Not data.augment.crop: its backward pass would fill every window of every image.
    height, width = images.shape[-2:]
    rows = torch.arange(height, device=images.device) - down[:, None]
    columns = torch.arange(width, device=images.device) - right[:, None]
    inside = ((rows >= 0) & (rows < height))[:, None, :, None] & ((columns >= 0) & (columns < width))[:, None, None, :]
    moved = images.gather(2, rows.clamp(0, height - 1)[:, None, :, None].expand_as(images))
    moved = moved.gather(3, columns.clamp(0, width - 1)[:, None, None, :].expand_as(images))
    return moved * inside


def zoom(images: Tensor, top: Tensor, left: Tensor, side: Tensor) -> Tensor:
    """Cut a square window of every image and resize it bilinearly to the whole size.

    Args:
        images: The images.
        top: Upper edge of the window, as a share of the free room.
        left: Left edge likewise.
        side: Side of the window, as a share of the image's.

    Shapes:
        images: [B, C, H, W]. top, left, side: [B], in 0..1. Returns [B, C, H, W].
    """
    nothing = torch.zeros_like(side)
    # In the grid's coordinates the image spans -1..1, and the window's centre moves within 1 - side of the middle.
    across = torch.stack((side, nothing, (1 - side) * (2 * left - 1)), dim=1)
    along = torch.stack((nothing, side, (1 - side) * (2 * top - 1)), dim=1)
    grid = F.affine_grid(torch.stack((across, along), dim=1), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)


class Views:
    """Draws views of images in 0..1; numbers come from a CPU generator, one set for every image.

    Args:
        mean: Mean of every channel that the teacher was normalised with.
        std: Standard deviation likewise.
        augment: What suits the images; characters are shifted but not mirrored.
        device: Where the images are.
    """

    def __init__(
        self, mean: Sequence[float], std: Sequence[float], augment: Augment, device: torch.device | str = "cpu"
    ) -> None:
        self.mean = torch.tensor(mean, dtype=torch.float64).float().view(-1, 1, 1).to(device)
        self.std = torch.tensor(std, dtype=torch.float64).float().view(-1, 1, 1).to(device)
        self.augment = augment

    def normalise(self, images: Tensor) -> Tensor:
        """Return images in 0..1 as the teacher expects them."""
        return (images - self.mean) / self.std

    def denormalise(self, images: Tensor) -> Tensor:
        """Return normalised images in 0..1."""
        return (images * self.std + self.mean).clamp(0, 1)

    def rolled(self, normalised: Tensor, generator: torch.Generator) -> Tensor:
        """Return normalised images all rolled by the same up to an eighth of their side, and mirrored.

        DeepInversion's jitter: what leaves at one edge comes in at the other.
        """
        if self.augment == "none":
            return normalised
        far = normalised.shape[-1] // 8
        down, right = torch.randint(-far, far + 1, (2,), generator=generator).tolist()
        return self._mirrored(normalised.roll((down, right), (2, 3)), generator)

    def random(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Return images in 0..1 shifted by up to the padding of the random crop, mirrored, and normalised."""
        if self.augment != "none":
            count, far = len(images), crop_padding(min(images.shape[-2:]))
            down, right = torch.randint(-far, far + 1, (2, count), generator=generator).to(images.device)
            images = shift(images, down, right)
        return self.normalise(self._mirrored(images, generator))

    def zoomed(self, images: Tensor, generator: torch.Generator, *, least: float = 0.25) -> Tensor:
        """Return random windows of ``least`` to all of the area, resized, mirrored, and normalised."""
        top, left, area = torch.rand(3, len(images), generator=generator).to(images.device)
        zoomed = zoom(images, top, left, (least + (1 - least) * area).sqrt())
        return self.normalise(self._mirrored(zoomed, generator))

    def _mirrored(self, images: Tensor, generator: torch.Generator) -> Tensor:
        if self.augment != "crop-flip":
            return images
        return flip(images, (torch.rand(len(images), generator=generator) < 0.5).to(images.device))
