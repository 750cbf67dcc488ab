"""The devices a run trains on: Lightning Fabric, one process a device, many under torchrun."""

from __future__ import annotations

import atexit
import os
from typing import TYPE_CHECKING, Literal, get_args

import torch

from stillroom.errors import InputError, MissingExtraError, unknown_name

if TYPE_CHECKING:
    from lightning_fabric import Fabric

__all__ = ["Device", "Precision", "is_plain", "make_fabric", "torch_device"]

Device = Literal["auto", "cpu", "cuda", "mps"]
Precision = Literal["32", "bf16-mixed", "16-mixed"]


def make_fabric(device: Device = "auto", precision: Precision = "32") -> Fabric:
    """Return a launched Fabric: one device, or as many processes as ``torchrun`` started (then with DDP).

    Args:
        device: Where to train; ``auto`` takes an accelerator when there is one.
        precision: Number format of the forward pass; weights stay in float32.

    Raises:
        InputError: The device is not there, or knows no such precision.
        MissingExtraError: lightning-fabric is not installed.
    """
    try:
        from lightning_fabric import Fabric
        from lightning_fabric.strategies.ddp import DDPStrategy
    except ImportError:
        raise MissingExtraError("lightning-fabric", "vision") from None
    for name, value, known in (("device", device, get_args(Device)), ("precision", precision, get_args(Precision))):
        if value not in known:
            raise unknown_name(name, value, known)
    _check_present(device)
    accelerated = torch.cuda.is_available() or torch.backends.mps.is_available()
    if precision == "16-mixed" and (device == "cpu" or not accelerated):
        raise InputError("precision '16-mixed' needs an accelerator; on a CPU use 'bf16-mixed' or '32'")
    if not torch.distributed.is_available() or not torch.distributed.is_torchelastic_launched():
        return Fabric(accelerator=device, devices=1, precision=precision)
    local = int(os.environ["LOCAL_WORLD_SIZE"])
    fabric = Fabric(
        accelerator=device,
        devices=local,
        num_nodes=int(os.environ["WORLD_SIZE"]) // local,
        precision=precision,
        # Some methods leave parameters of the student without gradient (an unused head, say).
        strategy=DDPStrategy(find_unused_parameters=True),
    )
    fabric.launch()
    # The process group's own threads must end before the interpreter does, or they can abort the process; Fabric sees
    # to that for NCCL only.
    atexit.register(_leave_group)
    return fabric


def torch_device(device: Device) -> torch.device:
    """Return torch's device for work that needs no Fabric; ``auto`` takes an accelerator when there is one.

    Raises:
        InputError: The device is not there.

    Example:
        >>> torch_device("cpu")
        device(type='cpu')
    """
    _check_present(device)
    if device != "auto":
        return torch.device(device)
    return torch.device("cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu")


def _check_present(device: str) -> None:
    absent = (device == "cuda" and not torch.cuda.is_available()) or (
        device == "mps" and not torch.backends.mps.is_available()
    )
    if absent:
        raise InputError(f"device {device!r} is not available here; use 'auto' or 'cpu'")


def _leave_group() -> None:
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def is_plain(fabric: Fabric) -> bool:
    """Return whether Fabric runs one process on one device in float32, so that its wrappers change nothing."""
    from lightning_fabric.strategies.single_device import SingleDeviceStrategy

    return isinstance(fabric.strategy, SingleDeviceStrategy) and fabric.strategy.precision.precision == "32-true"
