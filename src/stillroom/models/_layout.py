"""Recognise feature maps by their shape and bring them into the order [B, C, H, W]."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

from torch import Tensor, nn

from stillroom.errors import InputError

__all__ = ["Layout", "layout_of", "layouts_of", "to_map"]


class Layout(NamedTuple):
    """How a tapped tensor becomes a map [B, C, H, W]."""

    kind: Literal["map", "channels_last", "tokens"]
    prefix: int = 0  # tokens that belong to no position (class, distillation, registers)
    grid: tuple[int, int] = (0, 0)


def layout_of(model: nn.Module, shape: Sequence[int], image: tuple[int, int]) -> Layout | None:
    """Recognise a feature map of an image of this height and width by its shape, or return ``None``."""
    if len(shape) == 4:
        if _same_aspect(shape[2], shape[3], image):
            return Layout("map", grid=(shape[2], shape[3]))
        if _same_aspect(shape[1], shape[2], image):
            return Layout("channels_last", grid=(shape[1], shape[2]))
    if len(shape) == 3:
        declared = getattr(model, "num_prefix_tokens", None)
        for prefix in ([declared] if isinstance(declared, int) else []) + list(range(min(shape[1], 17))):
            tokens = shape[1] - prefix
            height = math.isqrt(tokens * image[0] // image[1]) if tokens > 0 else 0
            if height and tokens % height == 0 and height * image[1] == tokens // height * image[0]:
                return Layout("tokens", prefix, (height, tokens // height))
    return None


def _same_aspect(height: int, width: int, image: tuple[int, int]) -> bool:
    if image[0] == image[1] or height == width:
        return height == width and image[0] == image[1]
    ratio = (image[0] * width) / (image[1] * height) if height and width else 0.0
    return 1 / 1.5 <= ratio <= 1.5  # strides round up


def layouts_of(model: nn.Module, tensors: Sequence[Tensor], taps: Sequence[str], images: Tensor) -> tuple[Layout, ...]:
    image = (images.shape[-2], images.shape[-1])
    found: list[Layout] = []
    for tensor, tap in zip(
        tensors, taps, strict=False
    ):  # the pooled vector, last of the taps, is not among the tensors
        layout = layout_of(model, tensor.shape, image)
        if layout is None and tensor.dim() == 4:
            layout = Layout("map")
        if layout is None:
            raise InputError(f"tap {tap!r} gives shape {list(tensor.shape)}, not a feature map; tap another module")
        found.append(layout)
    # Channels, height and width may agree in number; then the other taps tell.
    if any(how.kind == "channels_last" for how in found):
        return tuple(
            how._replace(kind="channels_last") if how.kind == "map" and x.shape[1] == x.shape[2] == x.shape[3] else how
            for x, how in zip(tensors, found, strict=True)
        )
    return tuple(found)


def to_map(features: Tensor, layout: Layout) -> Tensor:
    if layout.kind == "map":
        return features
    if layout.kind == "channels_last":
        return features.permute(0, 3, 1, 2)
    height, width = layout.grid
    if features.shape[1] != layout.prefix + height * width:
        raise InputError(
            f"a tap gives {features.shape[1]} tokens, {layout.prefix + height * width} on the first images"
        )
    return features[:, layout.prefix :].transpose(1, 2).reshape(features.shape[0], -1, height, width)
