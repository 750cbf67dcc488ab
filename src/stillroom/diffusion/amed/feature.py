"""Read the bottleneck feature of any network while it runs."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from stillroom.errors import FailureError, InputError, nearest

__all__ = ["Bottleneck", "bottleneck"]


class Bottleneck:
    """Keeps the output of one module of a network from its latest call; see :func:`bottleneck`."""

    def __init__(self, module: nn.Module, name: str) -> None:
        self.name = name
        self._latest: Tensor | None = None
        self._handle = module.register_forward_hook(self._keep)

    def _keep(self, module: nn.Module, inputs: Any, output: Any) -> None:
        # Blocks of diffusers return tuples or records whose first entry is the feature map.
        feature = output if isinstance(output, Tensor) else output[0]
        self._latest = feature.detach()

    def __call__(self) -> Tensor:
        """Return the feature of the latest call, without gradient.

        Raises:
            FailureError: The network has not run.
        """
        if self._latest is None:
            raise FailureError(f"the feature of {self.name!r} was asked for before the network ran")
        return self._latest

    def remove(self) -> None:
        """Take the hook off the network."""
        self._handle.remove()
        self._latest = None


def bottleneck(network: nn.Module, path: str) -> Bottleneck:
    """Hook a module of a network, for :attr:`DenoisingModel.feature`.

    Args:
        network: Any network; it is not changed but for the hook.
        path: The module's name in it: ``middle`` of stillroom's U-Net, ``mid_block`` of diffusers' ones.

    Returns:
        A callable that returns the module's latest output.

    Raises:
        InputError: The network has no such module.

    Example:
        >>> import torch
        >>> network = nn.Sequential(nn.Linear(4, 2), nn.Linear(2, 4))
        >>> feature = bottleneck(network, "0")
        >>> _ = network(torch.zeros(3, 4))
        >>> feature().shape
        torch.Size([3, 2])
    """
    modules = dict(network.named_modules())
    if not path or path not in modules:
        raise InputError(f"{type(network).__name__} has no module {path!r}{nearest(path, modules)}")
    return Bottleneck(modules[path], path)
