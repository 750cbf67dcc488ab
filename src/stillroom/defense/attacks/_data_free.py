"""What the attacks without data share: their loop, and how tensors get to the victim and answers back."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, MultiStepLR

from stillroom.defense.attacks.clone import Measure
from stillroom.defense.attacks.generator import Generator
from stillroom.defense.attacks.target import Ask, BudgetSpent
from stillroom.defense.attacks.transfer import Stolen
from stillroom.errors import InputError, TrainingDivergedError
from stillroom.training.evaluate import evaluation_mode
from stillroom.training.progress import counting

if TYPE_CHECKING:
    from lightning_fabric import Fabric

__all__ = ["asking", "check_counts", "steal_without_data", "stepwise"]

RECORDS = 20  # of an attack's history


def check_counts(batch_size: int, **counts: int) -> None:
    """Refuse batches of less than two images and other counts below 1.

    Raises:
        InputError: One is.
    """
    if batch_size < 2:
        raise InputError(f"batch_size is {batch_size}; the generator's batch norm needs at least 2")
    for name, value in counts.items():
        if value < 1:
            raise InputError(f"{name} is {value}; it must be at least 1")


def asking(ask: Ask, device: torch.device) -> Callable[[Tensor], Tensor]:
    """Return the victim as a function of pixels [B, C, H, W] in 0..1, on a device, to probabilities [B, K] there."""

    def answers(pixels: Tensor) -> Tensor:
        found = ask(pixels.detach().to("cpu", torch.float32).numpy())
        return torch.from_numpy(np.ascontiguousarray(found)).to(device, torch.float32)

    return answers


def stepwise(optimizer: Optimizer, iterations: int) -> LRScheduler:
    """Multiply the learning rate by 0.3 after 10, 30 and 50 % of the iterations, as DFME does."""
    milestones = sorted({max(1, round(iterations * part)) for part in (0.1, 0.3, 0.5)})
    return MultiStepLR(optimizer, milestones, gamma=0.3)


def steal_without_data(
    begin: Callable[[Generator, int], Callable[[], dict[str, Tensor]]],
    clone: nn.Module,
    shape: tuple[int, int, int],
    *,
    latent: int,
    cost: int,
    budget: int,
    seed: int,
    measure: Measure | None,
    fabric: Fabric | None,
    show_progress: bool,
) -> Stolen:
    """Repeat an attack's iteration until the queries are used up.

    Args:
        begin: Given the generator and the number of iterations, returns one iteration, which returns its losses.
        clone: What is trained and measured.
        shape: Of the images.
        latent: Numbers of noise an image is made of.
        cost: Queries of an iteration.
        budget: Queries to make.
        seed: Seed of the generator's weights and of what the clone draws.
        measure: Measures the clone with every record.
        fabric: Its device is used; by default the processor.
        show_progress: Whether to show progress on standard error.

    Returns:
        With records at regular shares of the budget: ``queries``, the losses, what was measured.

    Raises:
        InputError: The budget does not pay for one iteration.
        TrainingDivergedError: A loss is not finite.
    """
    iterations = budget // cost
    if iterations < 1:
        raise InputError(f"an iteration costs {cost} queries, the budget is {budget}; lower batch_size")
    every = max(1, iterations // RECORDS)
    history: list[dict[str, Any]] = []
    device = torch.device("cpu") if fabric is None else fabric.device
    clone.to(device)
    with _own_random(seed), counting("queries", iterations * cost, show=show_progress) as tell:
        step = begin(Generator(shape, latent=latent).to(device), iterations)
        for number in range(1, iterations + 1):
            try:
                parts = step()
            except BudgetSpent:
                break
            tell(number * cost)
            if number % every == 0 or number == iterations:
                losses = {name: float(value) for name, value in parts.items()}
                if not np.isfinite(list(losses.values())).all():
                    raise TrainingDivergedError(f"a loss is not finite after {number * cost} queries; lower lr_clone")
                with evaluation_mode(clone):
                    history.append({"queries": number * cost, **losses, **(measure(clone) if measure else {})})
    return Stolen(clone.eval(), None, history)


@contextlib.contextmanager
def _own_random(seed: int) -> Iterator[None]:
    """Seed the processor's global generator, from which weights and dropout come, and put the caller's state back."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield
