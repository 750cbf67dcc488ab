"""Training a generator across rounds, in turns with the student (DAFL, ZSKT)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor

from stillroom.data.batch import Batch
from stillroom.data.split import random_stream
from stillroom.distillation.data_free._networks import fixed, through
from stillroom.distillation.data_free.task import DataFreeTask
from stillroom.distillation.data_free.views import Views
from stillroom.models.signals import Signals

__all__ = ["Generating", "GeneratorLoader"]

_PLAY, _DRAW = 20, 21  # purposes of the random streams of one seed


class Generating(Protocol):
    """A method whose generator is trained beside the student."""

    @property
    def ep_steps(self) -> int: ...
    @property
    def kd_steps(self) -> int: ...
    @property
    def g_steps(self) -> int: ...
    @property
    def synthesis_batch(self) -> int: ...
    @property
    def lr_g(self) -> float: ...
    @property
    def latent(self) -> int: ...
    def generator_loss(self, teacher: Signals, student: Signals) -> dict[str, Tensor]: ...


class GeneratorLoader:
    """Student batches fresh from the generator, which is trained once every ``kd_steps`` of them.

    All numbers depend on (seed, round, step) only, so a resumed run goes on with the same ones.

    Args:
        method: The method.
        task: Holds student, teacher and generator.
        views: How images are normalised.
        batch_size: Images of a student step.
        seed: Of the latent vectors.
        device: Where all this happens.
    """

    def __init__(
        self,
        method: Generating,
        task: DataFreeTask,
        views: Views,
        *,
        batch_size: int,
        seed: int,
        device: torch.device,
    ) -> None:
        assert task.player is not None
        self.method, self.task, self.player, self.views = method, task, task.player, views
        self.batch_size, self.seed, self.device = batch_size, seed, device

    def __len__(self) -> int:
        """Count the student steps of a round."""
        return self.method.ep_steps

    def epoch(self, number: int, start: int = 0) -> Iterator[Batch]:
        """Yield the batches of a round (counted from 1), from step ``start`` on; the generator moves on the way."""
        for step in range(start, len(self)):
            if step % self.method.kd_steps == 0:
                self._play(number, step)
            images = self.images(self.batch_size, number, step)
            with torch.no_grad():
                seen = self.views.normalise(images)
                target = through(self.task.teacher, seen).logits.argmax(1)
            yield Batch(seen, target, torch.arange(self.batch_size, device=self.device))

    def images(self, count: int, number: int, step: int) -> Tensor:
        """Return images of the present generator, in 0..1."""
        return self.player.images(self._latent(count, _DRAW, number, step))

    def _play(self, number: int, step: int) -> None:
        parts: dict[str, Tensor] = {}

        def objective(images: Tensor) -> Tensor:
            seen = self.views.normalise(images)
            parts.update(self.method.generator_loss(through(self.task.teacher, seen), self.task.student(seen)))
            return parts["loss"]

        with fixed(self.task.student):
            for turn in range(self.method.g_steps):
                self.player.step(self._latent(self.method.synthesis_batch, _PLAY, number, step, turn), objective)
        self.task.told(parts)

    def _latent(self, count: int, purpose: int, *key: int) -> Tensor:
        generator = random_stream(self.seed, purpose, *key)
        return torch.randn(count, self.method.latent, generator=generator).to(self.device)
