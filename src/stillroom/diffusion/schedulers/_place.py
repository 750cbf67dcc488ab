"""Where in a schedule a timestep is, and what samples look like there."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from stillroom.diffusion.denoiser import per_sample

__all__ = ["mixed", "nearest"]


def nearest(times: Sequence[float], timestep: float | Tensor, timesteps: Tensor | None = None) -> list[int]:
    """Return the places of the values nearest to a timestep, in order.

    Args:
        times: The values.
        timestep: What is looked for.
        timesteps: The same values as a tensor: one of its own entries is found by its place in memory, without reading
            it from the device.
    """
    if (
        isinstance(timestep, Tensor)
        and timesteps is not None
        and timestep.numel() == 1
        and timestep.untyped_storage().data_ptr() == timesteps.untyped_storage().data_ptr()
    ):
        place = int(timestep.storage_offset())
        return [place, *(k for k in range(place + 1, len(times)) if times[k] == times[place])]
    distance = np.abs(np.asarray(times) - float(timestep))
    return [int(k) for k in np.flatnonzero(distance == distance.min())]


def mixed(clean: Tensor, noise: Tensor, parts: Sequence[tuple[float, float]]) -> Tensor:
    """Return ``signal * clean + spread * noise`` with the parts of each sample, or the same of all.

    Shapes:
        clean, noise: [B, ...]. parts: B or 1 of signal and spread. Returns [B, ...].
    """
    table = torch.tensor(parts, dtype=torch.float64).to(clean)
    return per_sample(table[:, 0], clean) * clean + per_sample(table[:, 1], clean) * noise
