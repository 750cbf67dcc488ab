"""Weights of a block as tokens, one token a 3×3 kernel, and back."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from stillroom.errors import InputError

__all__ = ["from_tokens", "to_tokens"]


def to_tokens(conv1: Tensor, conv2: Tensor) -> Tensor:
    """Return one token a kernel: first those of ``conv1``, then those of ``conv2``, output channel by output channel.

    As Knowledge Translation lays them out: token ``out · inputs + in``, channel ``row · 3 + column``. Both blocks are
    laid out in this way: a large one of 6 planes has 72 tokens, a small one 36.

    Args:
        conv1: Weights of the first convolution.
        conv2: Weights of the second one, which reads what the first one writes.

    Shapes:
        conv1: [B, M, P, 3, 3]. conv2: [B, P, M, 3, 3]. Returns [B, 2·M·P, 9].

    Raises:
        InputError: The kernels are not 3×3, or the two convolutions do not fit together.

    Example:
        >>> to_tokens(torch.zeros(4, 6, 6, 3, 3), torch.zeros(4, 6, 6, 3, 3)).shape
        torch.Size([4, 72, 9])
    """
    for name, weight in (("conv1", conv1), ("conv2", conv2)):
        if weight.ndim != 5 or weight.shape[-2:] != (3, 3):
            raise InputError(
                f"{name} must be weights [B, out, in, 3, 3] of a 3×3 convolution, not {list(weight.shape)}"
            )
    batch, middle, planes = conv1.shape[:3]
    if conv2.shape[:3] != (batch, planes, middle):
        raise InputError(
            f"conv2 must be [{batch}, {planes}, {middle}, 3, 3] to follow conv1 {list(conv1.shape)}, "
            f"not {list(conv2.shape)}"
        )
    return torch.cat([weight.flatten(1, 2).flatten(2) for weight in (conv1, conv2)], dim=1)


def from_tokens(tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Return the two convolutions of a small block from its tokens, laid out as by Knowledge Translation.

    Args:
        tokens: One token a kernel; P planes are read off their number, P².

    Shapes:
        tokens: [B, P², 9] with P even. Returns [B, P/2, P, 3, 3] and [B, P, P/2, 3, 3].

    Raises:
        InputError: No small block has so many tokens.

    Example:
        >>> conv1, conv2 = from_tokens(torch.zeros(4, 36, 9))
        >>> tuple(conv1.shape), tuple(conv2.shape)
        ((4, 3, 6, 3, 3), (4, 6, 3, 3, 3))
    """
    planes = math.isqrt(tokens.shape[1]) if tokens.ndim == 3 else 0
    if planes < 2 or planes % 2 or tokens.shape[1:] != (planes**2, 9):
        raise InputError(
            f"tokens of a small block must be [B, P², 9] with an even number P of planes, not {list(tokens.shape)}"
        )
    first, second = tokens.chunk(2, dim=1)
    return first.reshape(-1, planes // 2, planes, 3, 3), second.reshape(-1, planes, planes // 2, 3, 3)
