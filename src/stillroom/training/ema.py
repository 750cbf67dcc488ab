"""An exponential moving average of weights, held as a module so that checkpoints carry it."""

from __future__ import annotations

import copy

import torch
from torch import nn

from stillroom.errors import InputError

__all__ = ["EMA"]


class EMA(nn.Module):
    """A copy of a module whose weights follow the original's slowly: ``e <- e + (1 - d_t)(w - e)``.

    The decay ``d_t = min(decay, (1 + t) / (10 + t))`` is small in the first updates, so that the average forgets the
    initial weights. Buffers are copied. The copy and its count of updates are part of the state of the module that
    holds it.

    Args:
        module: What is averaged.
        decay: Decay of the average, at least 0 and below 1.

    Raises:
        InputError: The decay is out of its range.

    Example:
        >>> layer = nn.Linear(1, 1)
        >>> average = EMA(layer, decay=0.9)
        >>> with torch.no_grad():
        ...     _ = layer.weight.fill_(3.0)
        >>> average.update(layer)
        >>> bool(layer.weight > average.module.weight)
        True
    """

    updates: torch.Tensor

    def __init__(self, module: nn.Module, decay: float) -> None:
        super().__init__()
        if not 0 <= decay < 1:
            raise InputError(f"the decay of the moving average is {decay}; it must be at least 0 and below 1")
        self.decay = decay
        self.module = copy.deepcopy(module).requires_grad_(False)
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Move the average towards the weights ``module`` has now, without a host read."""
        weight = (9 / (10 + self.updates)).clamp(min=1 - self.decay)  # 1 - d_t
        for average, value in zip(self.module.parameters(), module.parameters(), strict=True):
            average.lerp_(value, weight.to(average.dtype))
        for kept, buffer in zip(self.module.buffers(), module.buffers(), strict=True):
            kept.copy_(buffer)
        self.updates += 1
