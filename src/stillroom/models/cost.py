"""What a network costs: parameters, floating-point operations, latency, size."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from stillroom.models._trace import evaluating

__all__ = ["Cost", "count_flops", "count_parameters", "measure", "measure_latency"]

WARMUP = 5
REPEATS = 30


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Cost of one image through a network.

    ``flops`` counts a multiplication and an addition as two operations, as PyTorch does; papers that speak of MACs
    state half of it. Elementwise work (normalisation, activations) is not counted.
    """

    parameters: int
    flops: int
    latency_ms: float  # median over repeats at batch size 1
    size_mb: float  # parameters and buffers, in 10^6 bytes


def count_parameters(model: nn.Module) -> int:
    """Count the parameters of a network, trainable or frozen, shared ones once.

    Example:
        >>> count_parameters(nn.Linear(3, 2))
        8
    """
    return sum(parameter.numel() for parameter in model.parameters())


def count_flops(model: nn.Module, shape: tuple[int, ...]) -> int:
    """Count the floating-point operations of one forward pass with a batch of 1, by PyTorch's own counter.

    Args:
        model: Any network that takes a batch of images.
        shape: Shape of one image, (C, H, W).

    Example:
        >>> count_flops(nn.Sequential(nn.Flatten(), nn.Linear(12, 5)), (3, 2, 2))
        120
    """
    fast = torch.backends.mha.get_fastpath_enabled()
    # Fused attention is one operation the counter may not know: its parts are counted instead.
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with (
            _evaluating(model, shape, batch_size=1) as images,
            sdpa_kernel(SDPBackend.MATH),
            FlopCounterMode(display=False) as counter,
        ):
            model(images)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    return int(counter.get_total_flops())


def measure_latency(
    model: nn.Module, shape: tuple[int, ...], *, batch_size: int = 1, repeats: int = REPEATS, warmup: int = WARMUP
) -> float:
    """Return the median time of a forward pass in milliseconds, on the device the network is on.

    Args:
        model: Any network that takes a batch of images.
        shape: Shape of one image, (C, H, W).
        batch_size: Images per pass.
        repeats: Timed passes.
        warmup: Passes before them, which are not timed.
    """
    times = []
    with _evaluating(model, shape, batch_size) as images:
        for number in range(warmup + repeats):
            _wait_for(images.device)
            begin = time.perf_counter()
            model(images)
            _wait_for(images.device)
            if number >= warmup:
                times.append(time.perf_counter() - begin)
    return 1000 * statistics.median(times)


def measure(model: nn.Module, shape: tuple[int, ...]) -> Cost:
    """Measure all costs of a network for images of one shape (C, H, W); the network is left as it was."""
    held = [*model.parameters(), *model.buffers()]
    return Cost(
        parameters=count_parameters(model),
        flops=count_flops(model, shape),
        latency_ms=measure_latency(model, shape),
        size_mb=sum(tensor.nbytes for tensor in held) / 1e6,
    )


@contextlib.contextmanager
def _evaluating(model: nn.Module, shape: tuple[int, ...], batch_size: int) -> Iterator[Tensor]:
    """Yield a batch of zeros on the network's device and dtype, with the network in evaluation mode meanwhile."""
    example = next(model.parameters(), torch.empty(0))
    with evaluating(model):
        yield torch.zeros(batch_size, *shape, device=example.device, dtype=example.dtype)


def _wait_for(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
