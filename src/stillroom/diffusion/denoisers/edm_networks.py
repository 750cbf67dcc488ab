"""The networks of published EDM checkpoints: DDPM++ and NCSN++ (Song et al.) and ADM (Dhariwal and Nichol)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stillroom.diffusion.denoisers.edm_options import ADMOptions, SongOptions

__all__ = ["ADMUNet", "SongUNet"]


class _Resample(nn.Module):
    """Halve or double the resolution with a separable filter, every channel on its own."""

    taps: Tensor

    def __init__(self, taps: tuple[int, ...], direction: Literal["up", "down"], *, padded: bool = False) -> None:
        super().__init__()
        line = torch.tensor(taps, dtype=torch.float32) / sum(taps)
        # Doubling spreads every value over four.
        self.register_buffer("taps", torch.outer(line, line) * (4 if direction == "up" else 1), persistent=False)
        self.up, self.padding = direction == "up", 0 if padded else (len(taps) - 1) // 2

    def forward(self, x: Tensor) -> Tensor:
        channels = x.shape[1]
        weight = self.taps.to(x.dtype).expand(channels, 1, -1, -1)
        convolve = F.conv_transpose2d if self.up else F.conv2d
        resampled: Tensor = convolve(x, weight, stride=2, padding=self.padding, groups=channels)
        return resampled


@dataclass(frozen=True)
class _Style:
    """In what the residual blocks of the two families differ."""

    embedding: int
    modulated: bool  # scale and shift behind the second norm, or a shift before it
    eps: float
    taps: tuple[int, ...]
    project: bool  # a resampling shortcut has a convolution even where the channels stay
    channels_per_head: int | None  # None: one head
    gain: float  # of the sum with the shortcut


def _norm(channels: int, eps: float) -> nn.GroupNorm:
    return nn.GroupNorm(min(32, channels // 4), channels, eps=eps)


class _Block(nn.Module):
    """Residual block with the embedding, resampling before its convolutions, attention behind them."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        style: _Style,
        *,
        resample: Literal["up", "down"] | None = None,
        attention: bool = False,
    ) -> None:
        super().__init__()
        self.style = style
        self.resample = nn.Identity() if resample is None else _Resample(style.taps, resample)
        self.norm0 = _norm(inputs, style.eps)
        self.conv0 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.affine = nn.Linear(style.embedding, outputs * (2 if style.modulated else 1))
        self.norm1 = _norm(outputs, style.eps)
        self.conv1 = nn.Conv2d(outputs, outputs, 3, padding=1)
        project = inputs != outputs or (resample is not None and style.project)
        self.skip = nn.Conv2d(inputs, outputs, 1) if project else nn.Identity()
        # Fewer channels than a head needs means no attention, as in the published networks.
        self.heads = 0 if not attention else outputs // style.channels_per_head if style.channels_per_head else 1
        if self.heads:
            self.norm2 = _norm(outputs, style.eps)
            self.qkv = nn.Conv2d(outputs, 3 * outputs, 1)
            self.proj = nn.Conv2d(outputs, outputs, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        hidden = self.conv0(self.resample(F.silu(self.norm0(x))))
        condition = self.affine(embedding)[:, :, None, None]
        if self.style.modulated:
            scale, shift = condition.chunk(2, dim=1)
            hidden = torch.addcmul(shift, self.norm1(hidden), scale + 1)
        else:
            hidden = self.norm1(hidden + condition)
        hidden = self.conv1(F.silu(hidden))
        hidden = torch.add(hidden, self.skip(self.resample(x))) * self.style.gain
        return (hidden + self._attend(hidden)) * self.style.gain if self.heads else hidden

    def _attend(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        # The channels of a head are interleaved: query, key, value of the first, of the second, ...
        qkv = self.qkv(self.norm2(x)).reshape(batch, self.heads, channels // self.heads, 3, height * width)
        query, key, value = qkv.permute(3, 0, 1, 4, 2)  # [B, heads, H W, channels of a head] each
        mixed = F.scaled_dot_product_attention(query, key, value).transpose(2, 3)
        attended: Tensor = self.proj(mixed.reshape(x.shape))
        return attended


class _UNet(nn.Module):
    """What both families share: the encoder and the decoder, with the published names of all weights.

    ``enc`` and ``dec`` are keyed by the side of the images and the role of a layer, as in ``32x32_block0``.
    """

    def __init__(
        self, options: ADMOptions, style: _Style, *, first: int, encoder: str, decoder: str, all_attend: bool
    ) -> None:
        super().__init__()
        self.options, self.encoder, self.decoder = options, encoder, decoder
        self.sides = [options.img_resolution >> level for level in range(len(options.channel_mult))]
        widths = [options.model_channels * multiple for multiple in options.channel_mult]
        blocks, attended = options.num_blocks, options.attn_resolutions
        self.enc, self.dec = nn.ModuleDict(), nn.ModuleDict()
        self.shrink, self.grow = _Resample(style.taps, "down"), _Resample(style.taps, "up")
        # The residual pyramid convolves before it filters, and its convolution pads for both.
        self.shrink_padded = _Resample(style.taps, "down", padded=True)
        self.enc[f"{self.sides[0]}x{self.sides[0]}_conv"] = nn.Conv2d(options.in_channels, first, 3, padding=1)
        current, pyramid, skips = first, options.in_channels, [first]
        for level, (side, width) in enumerate(zip(self.sides, widths, strict=True)):
            here = f"{side}x{side}_"
            if level:
                self.enc[here + "down"] = _Block(current, current, style, resample="down")
                skips.append(current)
                if encoder == "skip":
                    self.enc[here + "aux_skip"] = nn.Conv2d(pyramid, current, 1)
                elif encoder == "residual":
                    padding = 1 + (len(style.taps) - 1) // 2
                    self.enc[here + "aux_residual"] = nn.Conv2d(pyramid, current, 3, padding=padding)
                    pyramid = current
            for k in range(blocks):
                self.enc[f"{here}block{k}"] = _Block(current, width, style, attention=side in attended)
                current = width
                skips.append(current)
        for level in reversed(range(len(widths))):
            side, width = self.sides[level], widths[level]
            here = f"{side}x{side}_"
            if level == len(widths) - 1:
                self.dec[here + "in0"] = _Block(current, current, style, attention=True)
                self.dec[here + "in1"] = _Block(current, current, style)
            else:
                self.dec[here + "up"] = _Block(current, current, style, resample="up")
            for k in range(blocks + 1):
                attention = side in attended and (all_attend or k == blocks)
                self.dec[f"{here}block{k}"] = _Block(current + skips.pop(), width, style, attention=attention)
                current = width
            if self._paints(level):
                self.dec[here + "aux_norm"] = _norm(current, style.eps)
                self.dec[here + "aux_conv"] = nn.Conv2d(current, options.out_channels, 3, padding=1)
        self.width = current

    def _paints(self, level: int) -> bool:
        return self.decoder == "skip" or (self.decoder == "standard" and level == 0)

    @property
    def bottleneck(self) -> str:
        """Name of the encoder's last block, whose output AMED-Solver reads (Zhou et al., CVPR 2024)."""
        side = self.sides[-1]
        return f"enc.{side}x{side}_block{self.options.num_blocks - 1}"

    def _encode(self, x: Tensor, embedding: Tensor) -> list[Tensor]:
        pyramid, skips = x, []
        for level, side in enumerate(self.sides):
            here = f"{side}x{side}_"
            if level == 0:
                x = self.enc[here + "conv"](x)
            else:
                x = self.enc[here + "down"](x, embedding)
                if self.encoder == "skip":
                    pyramid = self.shrink(pyramid)
                    x = x + self.enc[here + "aux_skip"](pyramid)
                elif self.encoder == "residual":
                    x = pyramid = (x + self.shrink_padded(self.enc[here + "aux_residual"](pyramid))) * math.sqrt(0.5)
            skips.append(x)
            for k in range(self.options.num_blocks):
                x = self.enc[f"{here}block{k}"](x, embedding)
                skips.append(x)
        return skips

    def _decode(self, skips: list[Tensor], embedding: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the features of the finest resolution, and the image where the levels paint one."""
        x, image = skips[-1], None
        for level in reversed(range(len(self.sides))):
            here = f"{self.sides[level]}x{self.sides[level]}_"
            for name in ("in0", "in1") if level == len(self.sides) - 1 else ("up",):
                x = self.dec[here + name](x, embedding)
            for k in range(self.options.num_blocks + 1):
                x = self.dec[f"{here}block{k}"](torch.cat([x, skips.pop()], dim=1), embedding)
            if self._paints(level):
                painted = self.dec[here + "aux_conv"](F.silu(self.dec[here + "aux_norm"](x)))
                image = painted if image is None else painted + self.grow(image)
        return x, image


class SongUNet(_UNet):
    """DDPM++ and NCSN++ (Song et al., Score-Based Generative Modeling through SDEs, ICLR 2021) as used by EDM.

    Args:
        options: Widths, depths and the variant.

    Shapes:
        x: [B, C, H, W].
        noise: [B], the encoded noise level.
        label: [B, label_dim], one-hot, all zero for "none".
        Returns [B, C', H, W].

    Example:
        >>> small = SongOptions(img_resolution=8, in_channels=1, out_channels=1, model_channels=8, num_blocks=1)
        >>> SongUNet(small)(torch.zeros(2, 1, 8, 8), torch.zeros(2), None).shape
        torch.Size([2, 1, 8, 8])
    """

    def __init__(self, options: SongOptions) -> None:
        width = options.model_channels
        style = _Style(
            width * options.channel_mult_emb, False, 1e-6, options.resample_filter, True, None, math.sqrt(0.5)
        )
        super().__init__(
            options, style, first=width, encoder=options.encoder_type, decoder=options.decoder_type, all_attend=False
        )
        encoded = width * options.channel_mult_noise
        self.map_noise = _Fourier(encoded) if options.embedding_type == "fourier" else _Positional(encoded, last=True)
        self.map_label = nn.Linear(options.label_dim, encoded) if options.label_dim else None
        self.map_layer0 = nn.Linear(encoded, style.embedding)
        self.map_layer1 = nn.Linear(style.embedding, style.embedding)

    def forward(self, x: Tensor, noise: Tensor, label: Tensor | None) -> Tensor:
        embedding = torch.cat(self.map_noise(noise), dim=1)
        if self.map_label is not None:
            label = x.new_zeros(len(x), self.options.label_dim) if label is None else label
            embedding = embedding + self.map_label(label * math.sqrt(self.options.label_dim))
        embedding = F.silu(self.map_layer1(F.silu(self.map_layer0(embedding))))
        image = self._decode(self._encode(x, embedding), embedding)[1]
        assert image is not None  # level 0 always paints here
        return image


class ADMUNet(_UNet):
    """ADM (Dhariwal and Nichol, Diffusion Models Beat GANs on Image Synthesis, NeurIPS 2021) as used by EDM.

    Args:
        options: Widths and depths.

    Shapes:
        As for :class:`SongUNet`.

    Example:
        >>> small = ADMOptions(img_resolution=8, in_channels=1, out_channels=2, model_channels=8, num_blocks=1)
        >>> ADMUNet(small)(torch.zeros(2, 1, 8, 8), torch.zeros(2), None).shape
        torch.Size([2, 2, 8, 8])
    """

    def __init__(self, options: ADMOptions) -> None:
        width = options.model_channels
        style = _Style(width * options.channel_mult_emb, True, 1e-5, (1, 1), False, 64, 1.0)
        super().__init__(
            options, style, first=width * options.channel_mult[0], encoder="standard", decoder="none", all_attend=True
        )
        self.map_noise = _Positional(width, last=False)
        self.map_layer0 = nn.Linear(width, style.embedding)
        self.map_layer1 = nn.Linear(style.embedding, style.embedding)
        self.map_label = nn.Linear(options.label_dim, style.embedding, bias=False) if options.label_dim else None
        self.out_norm = _norm(self.width, style.eps)
        self.out_conv = nn.Conv2d(self.width, options.out_channels, 3, padding=1)

    def forward(self, x: Tensor, noise: Tensor, label: Tensor | None) -> Tensor:
        sines, cosines = self.map_noise(noise)
        embedding = self.map_layer1(F.silu(self.map_layer0(torch.cat([cosines, sines], dim=1))))
        if self.map_label is not None and label is not None:
            embedding = embedding + self.map_label(label)
        embedding = F.silu(embedding)
        features = self._decode(self._encode(x, embedding), embedding)[0]
        image: Tensor = self.out_conv(F.silu(self.out_norm(features)))
        return image


class _Positional(nn.Module):
    """Sines and cosines of geometrically falling frequencies from 1 to 1/10000 (reached only with ``last``)."""

    frequencies: Tensor

    def __init__(self, width: int, *, last: bool) -> None:
        super().__init__()
        half = width // 2
        steps = torch.arange(half, dtype=torch.float32) / (half - 1 if last else half)
        self.register_buffer("frequencies", (1 / 10000) ** steps, persistent=False)

    def forward(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        angles = noise[:, None] * self.frequencies.to(noise.dtype)
        return angles.sin(), angles.cos()


class _Fourier(nn.Module):
    """Sines and cosines of random frequencies, which are part of the weights."""

    freqs: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("freqs", torch.zeros(width // 2))

    def forward(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        angles = noise[:, None] * (2 * math.pi * self.freqs).to(noise.dtype)
        return angles.sin(), angles.cos()
