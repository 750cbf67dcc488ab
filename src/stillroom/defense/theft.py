"""One attack on a victim behind a defence, by name, and what the clone it brings home is worth."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from stillroom.data.images import ImageData
from stillroom.defense.attacks.clone import CLONE_RECIPE, Measure, PixelInput
from stillroom.defense.attacks.dfme import DFME
from stillroom.defense.attacks.disguide import DisGUIDE, Ensemble
from stillroom.defense.attacks.jbda import JBDA
from stillroom.defense.attacks.knockoff import Knockoff
from stillroom.defense.attacks.maze import MAZE
from stillroom.defense.attacks.target import Ask, Labels
from stillroom.defense.attacks.transfer import Stolen
from stillroom.defense.traffic import Traffic
from stillroom.errors import InputError, unknown_name
from stillroom.models.create import create_model

if TYPE_CHECKING:
    from lightning_fabric import Fabric

__all__ = ["ATTACKS", "DATA_FREE", "Thief", "accuracy_on"]

ATTACKS = ("knockoff", "knockoff-adaptive", "jbda", "jbda-tr", "dfme", "maze", "disguide")
DATA_FREE = ("dfme", "maze", "disguide")
SEEDS = 128  # images of the surrogate set that JBDA starts with
ITERATIONS = 40  # data-free attacks: at least so many, by smaller batches, however small the budget


@dataclass(frozen=True)
class Thief:
    """Who steals, and with what.

    Args:
        attack: The attack.
        architecture: Of the clone.
        budget: Queries.
        epochs: Of the clone's training on the answers.
        seed: Of every draw and of the clone's first weights.
    """

    attack: str
    architecture: str
    budget: int
    epochs: int
    seed: int

    def __post_init__(self) -> None:
        if self.attack not in ATTACKS:
            raise unknown_name("attack", self.attack, ATTACKS)
        for name in ("budget", "epochs"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}; it must be at least 1")

    def steal(
        self,
        ask: Ask,
        data: ImageData,
        traffic: Traffic,
        labels: Labels,
        *,
        measure: Measure | None = None,
        fabric: Fabric | None = None,
        show_progress: bool = True,
    ) -> Stolen:
        """Steal.

        Args:
            ask: The victim.
            data: Its classes, the shape and the normalisation of its images, which a thief can guess.
            traffic: What is asked, by attacks that need images.
            labels: What the victim answers with.
            measure: Measures the clone as it is trained.
            fabric: Device and precision.
            show_progress: Whether to show progress on standard error.

        Raises:
            InputError: The attack cannot work with what it is given.
        """
        rest: dict[str, Any] = {
            "budget": self.budget,
            "seed": self.seed,
            "measure": measure,
            "fabric": fabric,
            "show_progress": show_progress,
        }
        clone = self._clone(data, 0)
        augment = data.augment
        if self.attack in ("knockoff", "knockoff-adaptive"):
            recipe = replace(CLONE_RECIPE, epochs=self.epochs)
            strategy: Literal["random", "adaptive"] = "random" if self.attack == "knockoff" else "adaptive"
            return Knockoff(strategy=strategy, recipe=recipe, augment=augment).steal(
                ask, clone, traffic.images, labels=traffic.labels, **rest
            )
        if self.attack in ("jbda", "jbda-tr"):
            # Data sets are often sorted by class.
            begin = np.random.default_rng(self.seed).permutation(len(traffic.images))[:SEEDS]
            recipe = replace(CLONE_RECIPE, epochs=self.epochs)
            return JBDA(form="jacobian" if self.attack == "jbda" else "top", recipe=recipe, augment=augment).steal(
                ask, clone, traffic.images[begin], **rest
            )
        if self.attack == "dfme":
            batch = self._batch(7, 256)
            return DFME(batch_size=batch).steal(ask, clone, data.shape, **rest)
        if self.attack == "maze":
            batch = self._batch(15, 128)
            return MAZE(batch_size=batch).steal(ask, clone, data.shape, **rest)
        pair = Ensemble([clone, self._clone(data, 1)])
        return DisGUIDE(labels=labels, batch_size=self._batch(1, 256)).steal(ask, pair, data.shape, **rest)

    def _batch(self, queries: int, usual: int) -> int:
        return max(2, min(usual, self.budget // (queries * ITERATIONS)))

    def _clone(self, data: ImageData, number: int) -> PixelInput:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1000 * self.seed + number)
            model = create_model(
                self.architecture,
                num_classes=len(data.classes),
                in_channels=data.shape[0],
                image_size=data.shape[1:],
            )
        return PixelInput(model.to(memory_format=torch.channels_last), data.mean, data.std)


def accuracy_on(
    images: NDArray[np.uint8], labels: NDArray[np.integer], victim: NDArray[np.integer]
) -> Callable[[nn.Module], dict[str, float]]:
    """Return a measurement of a clone: its accuracy in percent, and how often it says what the victim says.

    Shapes:
        images: [N, C, H, W]. labels, victim: [N].
    """

    def measure(clone: nn.Module) -> dict[str, float]:
        device = next(clone.parameters()).device
        said = np.concatenate(
            [
                clone(torch.from_numpy(images[start : start + 500]).to(device).float() / 255).argmax(1).cpu().numpy()
                for start in range(0, len(images), 500)
            ]
        )
        return {
            "test_accuracy": 100 * float((said == labels).mean()),
            "agreement": 100 * float((said == victim).mean()),
        }

    return measure
