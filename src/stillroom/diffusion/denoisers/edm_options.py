"""The shapes of the networks of published EDM checkpoints."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from stillroom.errors import InputError

__all__ = ["ADMOptions", "SongOptions"]


@dataclass(frozen=True, kw_only=True)
class ADMOptions:
    """The shape of an ADM network; the names are those of the published checkpoints' arguments.

    Args:
        img_resolution: Side of the images.
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        label_dim: Number of classes, 0 for an unconditional network.
        model_channels: Base number of channels.
        channel_mult: Channels of every resolution as multiples of it.
        channel_mult_emb: Width of the embedding as a multiple of it.
        num_blocks: Residual blocks per resolution of the encoder (the decoder has one more).
        attn_resolutions: Sides at which there is self-attention.

    Raises:
        InputError: A value is out of its range.
    """

    img_resolution: int
    in_channels: int
    out_channels: int
    label_dim: int = 0
    model_channels: int = 192
    channel_mult: tuple[int, ...] = (1, 2, 3, 4)
    channel_mult_emb: int = 4
    num_blocks: int = 3
    attn_resolutions: tuple[int, ...] = (32, 16, 8)

    def __post_init__(self) -> None:
        numbers = (self.img_resolution, self.in_channels, self.out_channels, self.num_blocks, self.channel_mult_emb)
        if min(numbers) < 1 or self.label_dim < 0 or not self.channel_mult or min(self.channel_mult) < 1:
            raise InputError(f"the sizes of the network must be positive, got {self}")
        if self.model_channels < 4 or self.model_channels % 4:
            raise InputError(f"model_channels is {self.model_channels}; it must be a positive multiple of 4")
        if self.img_resolution % 2 ** (len(self.channel_mult) - 1):
            raise InputError(
                f"img_resolution {self.img_resolution} cannot be halved {len(self.channel_mult) - 1} times"
            )


@dataclass(frozen=True, kw_only=True)
class SongOptions(ADMOptions):
    """The shape of a DDPM++ network (the defaults) or an NCSN++ network; further arguments as in :class:`ADMOptions`.

    Args:
        embedding_type: Encoding of the noise level: ``positional`` in DDPM++, ``fourier`` (random) in NCSN++.
        channel_mult_noise: Width of that encoding as a multiple of ``model_channels``: 1 in DDPM++, 2 in NCSN++.
        encoder_type: What the encoder takes up of the image at every resolution: nothing (``standard``), the image
            made smaller (``skip``), or a residual pyramid of features (``residual``, NCSN++).
        decoder_type: The image is put together at the end (``standard``) or from every resolution (``skip``).
        resample_filter: Taps of the filter of up- and downsampling: [1, 1] in DDPM++, [1, 3, 3, 1] in NCSN++.
    """

    model_channels: int = 128
    channel_mult: tuple[int, ...] = (1, 2, 2, 2)
    num_blocks: int = 4
    attn_resolutions: tuple[int, ...] = (16,)
    embedding_type: Literal["positional", "fourier"] = "positional"
    channel_mult_noise: int = 1
    encoder_type: Literal["standard", "skip", "residual"] = "standard"
    decoder_type: Literal["standard", "skip"] = "standard"
    resample_filter: tuple[int, ...] = (1, 1)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, known in (
            ("embedding_type", ("positional", "fourier")),
            ("encoder_type", ("standard", "skip", "residual")),
            ("decoder_type", ("standard", "skip")),
        ):
            if getattr(self, name) not in known:
                raise InputError(f"{name} is {getattr(self, name)!r}; known: {', '.join(known)}")
        if len(self.resample_filter) % 2 or not sum(self.resample_filter):
            raise InputError(f"resample_filter is {self.resample_filter}; it needs an even number of taps, sum not 0")
