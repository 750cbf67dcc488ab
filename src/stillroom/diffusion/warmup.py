"""The noise that searches for a way to sample start from: drawn from a seed, batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from stillroom.diffusion.denoiser import DenoisingModel
from stillroom.errors import InputError

__all__ = ["Draw", "random_classes", "warmup"]

Draw = Callable[[int, torch.Generator], Any]


def random_classes(classes: int) -> Draw:
    """Return what draws the conditions of a batch for a model of so many classes.

    Example:
        >>> random_classes(1)(2, torch.Generator())
        tensor([0, 0])
    """
    return lambda count, generator: torch.randint(classes, (count,), generator=generator)


def warmup(
    model: DenoisingModel,
    *,
    count: int,
    batch_size: int,
    seed: int,
    device: torch.device | str = "cpu",
    condition: Draw | None = None,
) -> Iterator[tuple[Tensor, Any]]:
    """Yield batches of unit-variance noise and their conditions; the same on every device.

    Args:
        model: Gives the shape.
        count: Samples in all.
        batch_size: Samples per batch; the last may have fewer.
        seed: Seed of noise and conditions.
        device: Where the model computes.
        condition: Draws the conditions of a batch, given its size and a generator; none by default.

    Shapes:
        Yields [B, *shape].

    Raises:
        InputError: A number is below 1.
    """
    for name, value in (("number of warm-up samples", count), ("batch size", batch_size)):
        if value < 1:
            raise InputError(f"the {name} is {value}; it must be at least 1")
    generator = torch.Generator().manual_seed(seed)
    for start in range(0, count, batch_size):
        size = min(batch_size, count - start)
        noise = torch.randn(size, *model.shape, generator=generator).to(device)
        drawn = None if condition is None else condition(size, generator)
        yield noise, drawn.to(device) if isinstance(drawn, Tensor) else drawn
