"""A compact U-Net with EDM preconditioning: a denoiser that a user can train in minutes."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stillroom.errors import InputError

__all__ = ["EDMDenoiser", "NetworkOptions", "UNet", "conditioning_mask"]


@dataclass(frozen=True, kw_only=True)
class NetworkOptions:
    """The shape of the U-Net; with ``EDMDenoiser`` it is all that is needed to rebuild a stored model.

    Args:
        width: Channels of the first level.
        multipliers: Channels of every level as multiples of the width; each level halves the resolution.
        blocks: Residual blocks per level of the encoder (the decoder has one more).
        attention: Levels, counted from 0, with self-attention; -1 is the innermost one.
        patch: Side of the square patches that are folded into channels before the first level.
        dropout: Dropout within residual blocks.
        highest_frequency: Of the sines the noise level's encoding ln(sigma) / 4 is embedded in; what is far above 10
            makes the denoiser jitter between neighbouring noise levels.
        sigma_data: Standard deviation of the data, for pixels in -1..1.

    Raises:
        InputError: A value is out of its range.
    """

    width: int = 32
    multipliers: tuple[int, ...] = (1, 2)
    blocks: int = 1
    attention: tuple[int, ...] = ()
    patch: int = 1
    dropout: float = 0.0
    highest_frequency: float = 10.0
    sigma_data: float = 0.5

    def __post_init__(self) -> None:
        def require(holds: bool, name: str, expected: str) -> None:
            if not holds:
                raise InputError(f"network.{name} is {getattr(self, name)!r}; it must be {expected}")

        require(self.width >= 8 and self.width % 8 == 0, "width", "a positive multiple of 8")
        require(bool(self.multipliers) and min(self.multipliers) >= 1, "multipliers", "positive whole numbers")
        require(self.blocks >= 1, "blocks", "at least 1")
        levels = len(self.multipliers)
        require(all(-levels <= level < levels for level in self.attention), "attention", f"levels below {levels}")
        require(self.patch >= 1, "patch", "at least 1")
        require(0 <= self.dropout < 1, "dropout", "at least 0 and below 1")
        require(1 <= self.highest_frequency < math.inf, "highest_frequency", "at least 1 and finite")
        require(0 < self.sigma_data < math.inf, "sigma_data", "positive and finite")


class NoiseEmbedding(nn.Module):
    """Sines and cosines of the noise level's encoding, of frequencies from 1 upwards, then two layers."""

    frequencies: Tensor

    def __init__(self, width: int, highest_frequency: float) -> None:
        super().__init__()
        half = width // 2
        frequencies = torch.exp(math.log(highest_frequency) * torch.arange(half, dtype=torch.float64) / half)
        self.register_buffer("frequencies", frequencies.float(), persistent=False)
        self.layers = nn.Sequential(nn.Linear(2 * half, 4 * width), nn.SiLU(), nn.Linear(4 * width, 4 * width))

    def forward(self, noise: Tensor) -> Tensor:
        angles = noise[:, None] * self.frequencies.to(noise.dtype)
        embedded: Tensor = self.layers(torch.cat([angles.cos(), angles.sin()], dim=1))
        return embedded


class ResidualBlock(nn.Module):
    """Norm, convolution, norm scaled and shifted by the embedding, convolution; halves the sum's variance."""

    def __init__(self, inputs: int, outputs: int, embedding: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(_groups(inputs), inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.modulation = nn.Linear(embedding, 2 * outputs)
        self.norm2 = nn.GroupNorm(_groups(outputs), outputs)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.shortcut = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.modulation.weight)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        hidden = self.conv1(F.silu(self.norm1(x)))
        scale, shift = self.modulation(embedding)[:, :, None, None].chunk(2, dim=1)
        hidden = F.silu(torch.addcmul(shift, self.norm2(hidden), scale + 1))
        hidden = self.conv2(self.dropout(hidden))
        mixed: Tensor = (self.shortcut(x) + hidden) * math.sqrt(0.5)
        return mixed


class Attention(nn.Module):
    """Self-attention over positions, in heads of 32 channels or the next number that divides them."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.heads = _divisor(channels, max(1, channels // 32))
        self.norm = nn.GroupNorm(_groups(channels), channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.out = nn.Conv2d(channels, channels, 1)
        nn.init.zeros_(self.out.weight)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:  # called like a residual block
        batch, channels, height, width = x.shape
        qkv = self.qkv(self.norm(x)).reshape(batch, 3, self.heads, channels // self.heads, height * width)
        query, key, value = qkv.transpose(3, 4).unbind(1)
        mixed = F.scaled_dot_product_attention(query, key, value)
        mixed = self.out(mixed.transpose(2, 3).reshape(batch, channels, height, width))
        result: Tensor = (x + mixed) * math.sqrt(0.5)
        return result


class UNet(nn.Module):
    """The network F of EDM's preconditioning: residual blocks on halving resolutions with skip connections.

    Args:
        channels: Image channels.
        classes: Number of classes for a class-conditional network, else 0. Class ``classes`` stands for "none".
        options: Widths and depths.

    Shapes:
        x: [B, channels, H, W]; H and W divisible by ``patch · 2^(levels - 1)``.
        noise: [B], the encoded noise level.
        label: [B], int64, or ``None``.
        Returns [B, channels, H, W].
    """

    def __init__(self, channels: int, classes: int, options: NetworkOptions) -> None:
        super().__init__()
        width, embedding = options.width, 4 * options.width
        widths = [width * multiplier for multiplier in options.multipliers]
        attended = {level % len(widths) for level in options.attention}
        self.divisor = options.patch * 2 ** (len(widths) - 1)
        self.patch = options.patch
        folded = channels * options.patch**2
        self.embedding = NoiseEmbedding(width, options.highest_frequency)
        self.labels = nn.Embedding(classes + 1, embedding) if classes else None
        self.first = nn.Conv2d(folded, width, 3, padding=1)
        self.encoder = nn.ModuleList()
        skips, current = [width], width
        for level, channels_here in enumerate(widths):
            if level > 0:
                self.encoder.append(Down(current))
                skips.append(current)
            for _ in range(options.blocks):
                self.encoder.append(Stage(current, channels_here, embedding, options.dropout, level in attended))
                current = channels_here
                skips.append(current)
        self.middle = Stage(current, current, embedding, options.dropout, attention=bool(attended))
        self.decoder = nn.ModuleList()
        for level, channels_here in reversed(list(enumerate(widths))):
            for _ in range(options.blocks + 1):
                inputs = current + skips.pop()
                self.decoder.append(Stage(inputs, channels_here, embedding, options.dropout, level in attended))
                current = channels_here
            if level > 0:
                self.decoder.append(Up(current))
        self.norm = nn.GroupNorm(_groups(current), current)
        self.last = nn.Conv2d(current, folded, 3, padding=1)
        nn.init.zeros_(self.last.weight)

    def forward(self, x: Tensor, noise: Tensor, label: Tensor | None = None) -> Tensor:
        embedding = self.embedding(noise)
        if self.labels is not None:
            embedding = embedding + self.labels(label)
        embedding = F.silu(embedding)
        hidden = self.first(F.pixel_unshuffle(x, self.patch))
        skips = [hidden]
        for block in self.encoder:
            hidden = block(hidden, embedding)
            skips.append(hidden)
        hidden = self.middle(hidden, embedding)
        for block in self.decoder:
            if isinstance(block, Stage):
                hidden = torch.cat([hidden, skips.pop()], dim=1)
            hidden = block(hidden, embedding)
        image: Tensor = F.pixel_shuffle(self.last(F.silu(self.norm(hidden))), self.patch)
        return image


class Stage(nn.Module):
    """A residual block, with attention behind it where asked for."""

    def __init__(self, inputs: int, outputs: int, embedding: int, dropout: float, attention: bool) -> None:
        super().__init__()
        self.block = ResidualBlock(inputs, outputs, embedding, dropout)
        self.attention = Attention(outputs) if attention else None

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        hidden: Tensor = self.block(x, embedding)
        return hidden if self.attention is None else self.attention(hidden, embedding)


class Down(nn.Module):
    """Halve the resolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        halved: Tensor = self.conv(x)
        return halved


class Up(nn.Module):
    """Double the resolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        doubled: Tensor = self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return doubled


def _groups(channels: int) -> int:
    return _divisor(channels, min(32, channels // 4))


def _divisor(number: int, most: int) -> int:
    return next(divisor for divisor in range(most, 0, -1) if number % divisor == 0)


class EDMDenoiser(nn.Module):
    """A U-Net as denoiser, preconditioned as in Karras et al., NeurIPS 2022, table 1 (EDM).

    Args:
        shape: Channels, height and width of an image.
        classes: Number of classes of a class-conditional model, else 0.
        options: The network's.

    Raises:
        InputError: The images do not fit the network's resolutions.

    Example:
        >>> denoiser = EDMDenoiser((1, 8, 8), 0, NetworkOptions(width=8))
        >>> denoiser(torch.zeros(2, 1, 8, 8), torch.tensor(1.0)).shape
        torch.Size([2, 1, 8, 8])
    """

    def __init__(self, shape: tuple[int, int, int], classes: int, options: NetworkOptions) -> None:
        super().__init__()
        self.shape, self.classes, self.options = shape, classes, options
        self.network = UNet(shape[0], classes, options)
        if shape[1] % self.network.divisor or shape[2] % self.network.divisor:
            raise InputError(
                f"images of {shape[1]}x{shape[2]} do not fit the network, which needs sides divisible by "
                f"{self.network.divisor}; use --data.image_size or fewer --network.multipliers"
            )

    def forward(self, x: Tensor, sigma: Tensor, condition: Tensor | None = None) -> Tensor:
        """Return the denoised images.

        Shapes:
            x: [B, C, H, W].
            sigma: [], [1], [B] or broadcastable [B, 1, 1, 1]; the noise level, positive.
            condition: [B], int64 classes, of which ``classes`` stands for none; ``None`` is none for all.
            Returns [B, C, H, W].

        Raises:
            InputError: The images have another shape than the model's, or an unconditional model got a condition.
        """
        if tuple(x.shape[1:]) != self.shape:
            raise InputError(f"the model denoises images of shape {self.shape}, got {tuple(x.shape[1:])}")
        if condition is not None and not self.classes:
            raise InputError("the model is unconditional, but a condition was given")
        if self.classes and condition is None:
            condition = torch.full((len(x),), self.classes, device=x.device)
        data = self.options.sigma_data
        sigma = sigma.to(x.dtype).reshape(-1)
        variance = sigma**2 + data**2
        level = sigma.expand(len(x)).log() / 4
        c_in, c_skip, c_out = (
            value.view(-1, 1, 1, 1) for value in (variance.rsqrt(), data**2 / variance, sigma * data * variance.rsqrt())
        )
        dtype = self.network.first.weight.dtype  # of states in float64, only the network's share is computed in float32
        output = self.network((c_in * x).to(dtype), level.to(dtype), condition).to(x.dtype)
        return torch.addcmul(c_skip * x, c_out, output)


def conditioning_mask(label: Tensor, probability: float, classes: int) -> Tensor:
    """Replace labels by "none" at random, so that one network learns both for classifier-free guidance."""
    return torch.where(torch.rand(label.shape, device=label.device) < probability, classes, label)
