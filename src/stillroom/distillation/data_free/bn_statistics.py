"""What a trained network remembers of its data: the statistics of its BatchNorm layers."""

from __future__ import annotations

from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.hooks import RemovableHandle

from stillroom.errors import InputError
from stillroom.losses.checks import full_precision

__all__ = ["BNStatistics", "bn_statistics_loss"]


class _Moments(torch.autograd.Function):
    """Variance (without Bessel's correction) and mean of every channel.

    A fraction of the time ``torch.var_mean`` takes on a CPU with channels-last maps (a tenth, forward and backward);
    inversion computes them for every layer of the teacher at every step.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        mean = x.mean((0, 2, 3))
        variance = (x - mean[:, None, None]).square_().mean((0, 2, 3))
        ctx.save_for_backward(x, mean)
        return variance, mean

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, to_variance: Tensor, to_mean: Tensor) -> Tensor:
        x, mean = ctx.saved_tensors
        count = x.numel() // x.shape[1]
        slope = to_variance * (2 / count)  # d var / d x = 2 (x - mean) / n
        return torch.addcmul((to_mean / count - slope * mean)[:, None, None], x, slope[:, None, None])


def bn_statistics_loss(x: Tensor, running_mean: Tensor, running_var: Tensor) -> Tensor:
    """Return how far the statistics of one BatchNorm layer's input are from those it was trained with.

    H. Yin et al., "Dreaming to Distill: Data-free Knowledge Transfer via DeepInversion", CVPR 2020:
    ``ρ = ‖σ² − var(x)‖₂ + ‖μ − mean(x)‖₂``, norms over the channels, statistics over samples and positions, the
    variance without Bessel's correction. At an exact match the gradient is 0.

    Args:
        x: Input of the layer.
        running_mean: μ, the layer's running mean.
        running_var: σ², its running variance.

    Shapes:
        x: [B, C, H, W]. running_mean, running_var: [C].

    Returns:
        A scalar.

    Example:
        >>> bn_statistics_loss(torch.ones(2, 4, 3, 3), torch.zeros(4), torch.zeros(4))
        tensor(2.)
    """
    variance, mean = _Moments.apply(full_precision(x))
    # The norm's gradient at 0 is defined as 0, where a square root of squares would give 0/0.
    loss: Tensor = torch.linalg.vector_norm(running_var - variance) + torch.linalg.vector_norm(running_mean - mean)
    return loss


class BNStatistics:
    """Reads the inputs of every BatchNorm2d of a network in evaluation mode, inside a ``with`` block.

    It always speaks of the *last* forward pass: read it right after the view it belongs to.

    Args:
        model: The trained network.
        method: Who needs the statistics, for the message.

    Raises:
        InputError: The network has no BatchNorm2d with running statistics.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)).eval()
        >>> statistics = BNStatistics(net)
        >>> with statistics:
        ...     _ = net(torch.zeros(3, 1, 8, 8))
        ...     print(statistics.loss().shape, statistics.features().shape)
        torch.Size([]) torch.Size([3, 2])
    """

    def __init__(self, model: nn.Module, method: str = "synthesis") -> None:
        self.layers = [
            module for module in model.modules() if isinstance(module, nn.BatchNorm2d) and module.track_running_stats
        ]
        if not self.layers:
            raise InputError(
                f"{method} makes images from the statistics of the teacher's BatchNorm layers, and "
                f"{type(model).__name__} has none; take a teacher with BatchNorm2d, or dafl or zskt, which need none"
            )
        self._inputs: list[Tensor | None] = [None] * len(self.layers)
        self._handles: list[RemovableHandle] = []

    @property
    def width(self) -> int:
        """Channels of all layers together."""
        return sum(layer.num_features for layer in self.layers)

    def __enter__(self) -> Self:
        self._handles = [layer.register_forward_pre_hook(self._catch(place)) for place, layer in enumerate(self.layers)]
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for handle in self._handles:
            handle.remove()
        self._inputs = [None] * len(self.layers)

    def loss(self) -> Tensor:
        """Return the distance summed over the layers, for the last forward pass."""
        terms = []
        for layer, x in zip(self.layers, self._last(), strict=True):
            assert layer.running_mean is not None
            assert layer.running_var is not None
            terms.append(bn_statistics_loss(x, layer.running_mean, layer.running_var))
        return torch.stack(terms).sum()

    def features(self) -> Tensor:
        """Return the spatial means of every layer's input, side by side: [B, width]."""
        return torch.cat([full_precision(x).mean((2, 3)) for x in self._last()], dim=1)

    def _last(self) -> list[Tensor]:
        found = [x for x in self._inputs if x is not None]
        if len(found) < len(self.layers):
            raise InputError("the statistics are read after a forward pass that runs every BatchNorm layer")
        return found

    def _catch(self, place: int) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
            self._inputs[place] = args[0]

        return hook
