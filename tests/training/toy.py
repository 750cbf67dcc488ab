"""A tiny task with batch norm and dropout that draws from every global generator, and its data."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stillroom.data.batch import Batch
from stillroom.training.evaluate import accuracy
from stillroom.training.fabric import make_fabric
from stillroom.training.loop import fit
from stillroom.training.recipe import Recipe
from stillroom.training.run import RunDirectory

CLASSES = 4
RECIPE = Recipe(epochs=3, batch_size=8, lr=0.05, momentum=0.9, weight_decay=1e-3, milestones=(0.5,))


class ToyLoader:
    """Two-dimensional points whose class is their quadrant; the order of an epoch follows from its number alone."""

    def __init__(self, samples: int = 64, batch_size: int = 8, rank: int = 0, world: int = 1) -> None:
        generator = torch.Generator().manual_seed(1)
        self.points = torch.randn(samples, 2, generator=generator).reshape(samples, 2, 1, 1)
        self.target = ((self.points[:, 0, 0, 0] > 0) * 2 + (self.points[:, 1, 0, 0] > 0)).long()
        self.batch_size, self.rank, self.world = batch_size, rank, world

    def __len__(self) -> int:
        return len(self.points) // (self.batch_size * self.world)

    def epoch(self, number: int, start: int = 0) -> Iterator[Batch]:
        torch.empty((), dtype=torch.int64).random_()  # as torch's DataLoader does when its iteration begins
        order = torch.randperm(len(self.points), generator=torch.Generator().manual_seed(number))
        for step in range(start, len(self)):
            first = (step * self.world + self.rank) * self.batch_size
            index = order[first : first + self.batch_size]
            yield Batch(self.points[index], self.target[index], index)


class ToyTask(nn.Module):
    """Cross-entropy with noise on the images; ``noisy=False`` is the plain linear task without any state."""

    def __init__(self, noisy: bool = True, before_step: Callable[[int], None] = lambda step: None) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        hidden = [nn.Linear(2, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, CLASSES)]
        self.net = nn.Sequential(nn.Flatten(), *(hidden if noisy else [nn.Linear(2, CLASSES)]))
        self.unused = nn.Linear(2, 2)  # as the head of a student whose method answers through another one
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.5)
        self.noisy, self.before_step, self.steps = noisy, before_step, 0
        self.epochs: list[int] = []

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        self.steps += 1
        self.before_step(self.steps)
        images = batch.images
        if self.noisy:
            images = images + 0.1 * random.random() + 0.1 * np.random.rand()
        logits = self.net(images)
        loss = F.cross_entropy(logits, batch.target)
        return {"loss": loss, "output": logits.detach(), "half": 0.5 * loss.detach()}

    def predict(self, images: Tensor) -> Tensor:
        logits: Tensor = self.net(images)
        return logits

    def start_epoch(self, epoch: int) -> None:
        self.epochs.append(epoch)


def train(task: ToyTask, path: Path | None, *, fabric: Any = None, **options: Any) -> list[dict[str, Any]]:
    """Train on the CPU with evaluation, quietly unless told otherwise."""
    fabric = fabric or make_fabric("cpu")
    loader = options.pop("loader", ToyLoader())
    recipe = options.pop("recipe", RECIPE)
    quiet = {"seed": 7, "show_progress": False, "evaluate": lambda inner: accuracy(inner.predict, loader, fabric)}
    run = RunDirectory(path) if path is not None else None
    if run is not None and fabric.world_size > 1:
        run = RunDirectory(run.path, writes=fabric.is_global_zero)
    return fit(task, loader, recipe, run=run, fabric=fabric, **(quiet | options))


def without_times(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the records without what no two runs share."""
    return [{k: v for k, v in record.items() if k not in ("seconds", "images_per_second")} for record in history]
