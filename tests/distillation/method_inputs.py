"""Inputs for one step of a distillation method, and what watches the step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from stillroom.data.batch import Batch
from stillroom.models.signals import Signals

SignalName = Literal["logits", "stages", "preact", "pooled"]
Map = tuple[int, int, int]  # C, H, W


@dataclass(frozen=True)
class Inputs:
    """One step's input: leaves for both networks, so a gradient shows where it went."""

    student: Signals
    teacher: Signals
    batch: Batch


class HostReads(TorchDispatchMode):
    """Collects the operations that make the host wait for the device."""

    FORBIDDEN = ("_local_scalar_dense", "nonzero", "is_nonzero", "equal", "masked_select", "_unique2")

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        # A boolean index looks for its nonzero entries inside the kernel, out of the mode's sight.
        by_mask = name.strip("_") in ("index", "index_put", "index_put_impl") and any(
            index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1]
        )
        if by_mask or name in self.FORBIDDEN:
            self.found.append(str(func))
        return func(*args, **(kwargs or {}))


def tensors(signals: Signals) -> dict[str, Tensor]:
    """Name every tensor of the signals: ``logits``, ``stages.0``, ..."""
    named = {"logits": signals.logits}
    named |= {f"stages.{i}": value for i, value in enumerate(signals.stages)}
    named |= {f"preact.{i}": value for i, value in enumerate(signals.preact)}
    return named if signals.pooled is None else named | {"pooled": signals.pooled}


def each(signals: Signals, change: Callable[[Tensor], Tensor]) -> Signals:
    """Apply ``change`` to every tensor and make the results leaves that collect gradients."""

    def leaf(value: Tensor) -> Tensor:
        return change(value.detach()).detach().requires_grad_()

    return Signals(
        logits=leaf(signals.logits),
        stages=tuple(map(leaf, signals.stages)),
        preact=tuple(map(leaf, signals.preact)),
        pooled=None if signals.pooled is None else leaf(signals.pooled),
    )


def strided(value: Tensor) -> Tensor:
    return torch.stack((value, torch.zeros_like(value)), dim=-1)[..., 0]


def channels_last(value: Tensor) -> Tensor:
    return value.contiguous(memory_format=torch.channels_last) if value.ndim == 4 else value
