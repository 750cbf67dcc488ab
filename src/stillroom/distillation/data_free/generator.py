"""The generator of synthetic images: a latent vector in, an image with values in 0..1 out."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from stillroom.errors import InputError

__all__ = ["Generator", "reinitialise"]


class Generator(nn.Module):
    """A linear layer to a coarse map, then twice doubled in size and convolved.

    The generator of the released code of CMI and CSD (after DAFL): linear nz → 2f·(S/4)²; BN; ×2 nearest; conv3×3 2f;
    BN; LeakyReLU 0.2; ×2; conv3×3 f; BN; LeakyReLU 0.2; conv3×3 → channels; sigmoid.

    Args:
        latent: nz, size of the latent vector.
        size: S, side of the images.
        channels: Channels of the images.
        width: f, channels of the last hidden map.

    Shapes:
        Takes [B, latent]; returns [B, channels, size, size] in 0..1.

    Raises:
        InputError: The size is not divisible by 4.

    Example:
        >>> Generator(latent=8, size=28, channels=1, width=4)(torch.zeros(2, 8)).shape
        torch.Size([2, 1, 28, 28])
    """

    def __init__(self, *, latent: int = 256, size: int = 32, channels: int = 3, width: int = 64) -> None:
        super().__init__()
        if size < 4 or size % 4:
            raise InputError(
                f"the generator makes square images whose side is divisible by 4, not {size}; give data.image_size"
            )
        self.latent = latent
        self.coarse = size // 4
        self.l1 = nn.Sequential(nn.Linear(latent, 2 * width * self.coarse**2))
        self.conv_blocks = nn.Sequential(
            nn.BatchNorm2d(2 * width),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(2 * width, 2 * width, 3, padding=1, bias=False),
            nn.BatchNorm2d(2 * width),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(2 * width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Conv2d(width, channels, 3, padding=1),
            nn.Sigmoid(),
        )

    def forward(self, z: Tensor) -> Tensor:
        coarse = self.l1(z).unflatten(1, (-1, self.coarse, self.coarse))
        images: Tensor = self.conv_blocks(coarse.contiguous(memory_format=torch.channels_last))
        return images


@torch.no_grad()
def reinitialise(module: nn.Module, generator: torch.Generator) -> None:
    """Draw all weights anew: N(0, 0.02) of convolutions and linear layers, N(1, 0.02) of BatchNorm, biases 0.

    Running statistics start anew too. The numbers are drawn on the CPU, so that they do not depend on the device.

    Args:
        module: Changed in place.
        generator: Source of the draws.
    """
    for inner in module.modules():
        if isinstance(inner, nn.Conv2d | nn.Linear | nn.BatchNorm2d):
            normalises = isinstance(inner, nn.BatchNorm2d)
            if isinstance(inner, nn.BatchNorm2d):
                inner.reset_running_stats()
            inner.weight.copy_(torch.randn(inner.weight.shape, generator=generator) * 0.02 + (1 if normalises else 0))
            if inner.bias is not None:
                inner.bias.zero_()
