"""Evaluation of a classifier over a loader, with one host read at the end."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stillroom.errors import InputError
from stillroom.training._sums import sum_over_processes
from stillroom.training.contracts import Loader

if TYPE_CHECKING:
    from lightning_fabric import Fabric

__all__ = ["accuracy", "evaluation_mode", "predictions", "to_device"]

Predict = Callable[[Tensor], Tensor]
BatchT = TypeVar("BatchT", bound=tuple[Any, ...])


@contextlib.contextmanager
def evaluation_mode(*modules: nn.Module) -> Iterator[None]:
    """Put modules into evaluation mode without graph; afterwards each submodule is in the mode it was in before.

    Example:
        >>> model = nn.Dropout()
        >>> with evaluation_mode(model):
        ...     print(model.training, torch.is_grad_enabled())
        False False
        >>> model.training
        True
    """
    before = [(inner, inner.training) for module in modules for inner in module.modules()]
    for module in modules:
        module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for inner, training in before:
            inner.training = training


def accuracy(predict: nn.Module | Predict, loader: Loader, fabric: Fabric) -> dict[str, float]:
    """Return top-1 ``accuracy`` in percent and mean ``cross_entropy`` over a loader, all processes together.

    Args:
        predict: Maps images to logits; a module is put into evaluation mode for it, of a bound method the caller
            does that.
        loader: The data; its first epoch is read.
        fabric: Device and precision to evaluate with.

    Raises:
        InputError: The loader is empty.
    """
    _check(loader)
    correct = torch.zeros((), dtype=torch.int64, device=fabric.device)
    entropy = torch.zeros((), dtype=torch.float32, device=fabric.device)
    count = 0
    with evaluation_mode(*_modules(predict)):
        for logits, target in _outputs(predict, loader, fabric):
            correct += (logits.argmax(1) == target).sum()
            entropy += F.cross_entropy(logits, target, reduction="sum")
            count += target.shape[0]
    sums = torch.stack([correct.float(), entropy, torch.full_like(entropy, count)])
    all_correct, all_entropy, all_count = sum_over_processes(sums, fabric).tolist()
    return {"accuracy": 100 * all_correct / all_count, "cross_entropy": all_entropy / all_count}


def predictions(predict: nn.Module | Predict, loader: Loader, fabric: Fabric) -> tuple[Tensor, Tensor]:
    """Return this process's logits [N, K] (float32) and targets [N] over a loader, on the CPU, in its order.

    Raises:
        InputError: The loader is empty.
    """
    _check(loader)
    with evaluation_mode(*_modules(predict)):
        pairs = list(_outputs(predict, loader, fabric))
    return torch.cat([logits for logits, _ in pairs]).cpu(), torch.cat([target for _, target in pairs]).cpu()


def _check(loader: Loader) -> None:
    if len(loader) == 0:
        raise InputError("there is nothing to evaluate on: the loader has no batch")


def _modules(predict: nn.Module | Predict) -> list[nn.Module]:
    return [predict] if isinstance(predict, nn.Module) else []


def _outputs(predict: nn.Module | Predict, loader: Loader, fabric: Fabric) -> Iterator[tuple[Tensor, Tensor]]:
    for batch in loader.epoch(1):
        images, target, _ = to_device(batch, fabric.device)
        with fabric.autocast():
            logits = predict(images)
        yield logits.float(), target


def to_device(batch: BatchT, device: torch.device) -> BatchT:
    """Return the batch, a named tuple, with its tensors on a device; nothing is copied when they are there already."""
    moved = (value.to(device, non_blocking=True) if isinstance(value, Tensor) else value for value in batch)
    return type(batch)(*moved)
