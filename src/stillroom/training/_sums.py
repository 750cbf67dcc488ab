"""Means of an epoch, summed on the device so that no step waits for the host."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from lightning_fabric import Fabric

__all__ = ["EpochSums", "not_finite", "sum_over_processes"]


class EpochSums:
    """Sums of the loss, its parts and the hits over the samples of one epoch so far."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.names: list[str] = []  # "loss" first, then the parts of the first step
        self.totals = torch.empty(0)
        self.hits = torch.zeros((), dtype=torch.int64, device=device)
        self.count = 0
        self.scored = False  # whether the step returns an output to count hits of

    def add(self, parts: Mapping[str, Tensor], target: Tensor) -> None:
        """Add one step's outcome, weighted by its number of samples."""
        if not self.names:
            self.names = ["loss", *(name for name in parts if name not in ("loss", "output"))]
            dtype = torch.float32 if self.device.type == "mps" else torch.float64
            self.totals = torch.zeros(len(self.names), dtype=dtype, device=self.device)
            self.scored = "output" in parts
        size = target.shape[0]
        self.count += size
        self.totals.add_(torch.stack([parts[name].detach() for name in self.names]), alpha=size)
        if self.scored:
            self.hits.add_((parts["output"].detach().argmax(1) == target).count_nonzero())

    def means(self, fabric: Fabric | None) -> dict[str, float]:
        """Read the means on the host; with ``fabric`` those over all its processes."""
        sums = torch.cat([self.totals, torch.stack([self.hits, self.hits.new_tensor(self.count)]).to(self.totals)])
        *totals, hits, count = (sum_over_processes(sums, fabric) if fabric is not None else sums).tolist()
        means = {name: total / count for name, total in zip(self.names, totals, strict=True)}
        return means | ({"accuracy": 100 * hits / count} if self.scored else {})

    def state(self) -> dict[str, Any]:
        """Return the sums for a checkpoint."""
        return {
            "names": self.names,
            "totals": self.totals.cpu(),
            "hits": self.hits.cpu(),
            "count": self.count,
            "scored": self.scored,
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Take up what :meth:`state` returned."""
        self.names, self.count, self.scored = list(state["names"]), state["count"], state["scored"]
        self.totals, self.hits = state["totals"].to(self.device), state["hits"].to(self.device)


def not_finite(means: Mapping[str, float]) -> str | None:
    """Return ``"nan"`` or ``"infinite"`` when the loss is, else ``None``."""
    loss = means["loss"]
    return None if math.isfinite(loss) else "nan" if math.isnan(loss) else "infinite"


def sum_over_processes(sums: Tensor, fabric: Fabric) -> Tensor:
    """Return the sum of every process's tensor."""
    if fabric.world_size == 1:
        return sums
    reduced = fabric.all_reduce(sums, reduce_op="sum")
    assert isinstance(reduced, Tensor)
    return reduced
