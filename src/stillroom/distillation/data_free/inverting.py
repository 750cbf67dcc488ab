"""Rounds of synthesis into the bank, and student batches out of it (CSD, CMI, DeepInversion)."""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Callable, Iterator
from typing import Protocol

import torch

from stillroom.data.batch import Batch
from stillroom.data.loaders import TrainLoader
from stillroom.data.options import Augment
from stillroom.data.split import random_stream
from stillroom.distillation.data_free._networks import fixed, through
from stillroom.distillation.data_free.bank import Bank, Round
from stillroom.distillation.data_free.bn_statistics import BNStatistics
from stillroom.distillation.data_free.inversion import Made, Scene
from stillroom.distillation.data_free.task import DataFreeTask
from stillroom.distillation.data_free.views import Views
from stillroom.training.progress import counting

__all__ = ["BankLoader", "Inverting", "Studio"]

_SYNTHESIS, _HEAD = 10, 11  # purposes of the random streams of one seed


class Inverting(Protocol):
    """A method that inverts the teacher round by round."""

    @property
    def kd_steps(self) -> int: ...
    @property
    def initial_rounds(self) -> int: ...
    @property
    def synthesis_batch(self) -> int: ...
    def steps(self, *, initial: bool) -> int: ...
    def synthesise(self, scene: Scene, *, initial: bool) -> Made: ...


class Studio:
    """Makes the images of a round, once: a round in the bank is read instead.

    Args:
        method: The method.
        task: Holds student, teacher and head.
        bank: Where the images go.
        views: How images are shown to the networks.
        shape: Channels, height and width of the images.
        classes: Number of classes.
        seed: All numbers of a round depend on it and on the round only.
        device: Where the synthesis runs.
        show: Whether to show progress.
    """

    def __init__(
        self,
        method: Inverting,
        task: DataFreeTask,
        bank: Bank,
        views: Views,
        *,
        shape: tuple[int, int, int],
        classes: int,
        seed: int,
        device: torch.device,
        show: bool,
    ) -> None:
        self.method, self.task, self.bank, self.views = method, task, bank, views
        self.shape, self.classes, self.seed, self.device, self.show = shape, classes, seed, device, show
        self.statistics = BNStatistics(task.teacher.model)

    def fill(self) -> None:
        """Make what is missing of the initial bank, for which no student is needed."""
        rounds, steps = self.method.initial_rounds, self.method.steps(initial=True)
        done = min(self.bank.newest, rounds)
        show = self.show and done < rounds
        with counting("initial synthesis", rounds * steps, done=done * steps, show=show) as told:
            for number in range(done + 1, rounds + 1):
                before = (number - 1) * steps
                self._make(number, initial=True, told=lambda step, before=before: told(before + step))  # type: ignore[misc]

    def round(self, epoch: int, *, begun: bool = False) -> int:
        """Make sure of an epoch's images and return the round's number.

        Raises:
            InputError: The epoch has begun and its images are gone; the student that they were made for has moved on.
        """
        number = self.method.initial_rounds + epoch
        if number not in self.bank and not begun:
            # Only one live display fits on a terminal, and there the training's bar is up.
            show = self.show and not sys.stderr.isatty()
            label = f"synthesis of round {epoch}"
            with counting(label, self.method.steps(initial=False), show=show) as told:
                self._make(number, initial=False, told=told)
        parts = self.bank[number].parts
        self.task.told({name: torch.tensor(value, device=self.device) for name, value in parts.items()})
        return number

    def restart_head(self, epoch: int) -> None:
        """Draw the auxiliary head anew."""
        if self.task.auxiliary is not None:
            self.task.auxiliary.restart(random_stream(self.seed, _HEAD, epoch))

    def _make(self, number: int, *, initial: bool, told: Callable[[int], None]) -> None:
        started = time.monotonic()
        generator = random_stream(self.seed, _SYNTHESIS, number)
        target = torch.randint(self.classes, (self.method.synthesis_batch,), generator=generator).sort().values
        task, auxiliary = self.task, self.task.auxiliary
        networks = [task.student, task.teacher.model, *([auxiliary.head] if auxiliary is not None else [])]
        own = [self.device] if self.device.type == "cuda" else []
        # Modules draw from the global generators when they are made; a resumed run, which only reads, draws nothing.
        with fixed(*networks), self.statistics, torch.enable_grad(), torch.random.fork_rng(own):
            torch.manual_seed(generator.initial_seed())
            made = self.method.synthesise(
                Scene(
                    teacher=lambda images: through(task.teacher, images).logits,
                    statistics=self.statistics,
                    student=task.student,
                    head=None if auxiliary is None else auxiliary.head,
                    views=self.views,
                    target=target.to(self.device),
                    shape=self.shape,
                    generator=generator,
                    state={name: value.to(self.device) for name, value in self.bank.state(number - 1).items()},
                    earlier=lambda: self.bank.rows(number - 1),
                    told=told,
                ),
                initial=initial,
            )
        pixels = (made.images * 255).round().clamp(0, 255).to(torch.uint8).cpu()
        parts = {name: float(part) for name, part in made.parts.items() if part.ndim == 0}
        before = self.bank[number - 1].seconds if number > 1 else 0.0
        done = Round(pixels, target, parts, before + time.monotonic() - started, made.rows)
        self.bank.add(number, done, made.state)


class BankLoader:
    """The batches of a round: its images are made first, then all images of the bank are shuffled and augmented.

    Args:
        studio: Makes the images.
        batch_size: Images of a student step.
        augment: What suits them.
    """

    def __init__(self, studio: Studio, *, batch_size: int, augment: Augment) -> None:
        self.studio, self.batch_size, self.augment = studio, batch_size, augment

    def __len__(self) -> int:
        """Count the student steps of a round."""
        return self.studio.method.kd_steps

    def epoch(self, number: int, start: int = 0) -> Iterator[Batch]:
        """Yield the batches of a round (counted from 1), from step ``start`` on, always the same ones."""
        studio = self.studio
        newest = studio.round(number, begun=start > 0)
        if start == 0:
            studio.restart_head(number)
        images = studio.bank.images(newest)
        views = studio.views
        loader = TrainLoader(
            images,
            batch_size=self.batch_size,
            seed=studio.seed,
            augment=self.augment,
            mean=views.mean.flatten().tolist(),
            std=views.std.flatten().tolist(),
            device=studio.device,
        )
        passed, skipped = divmod(start, len(loader))
        # A pass through the bank has a number no pass of another round has.
        passes = ((number - 1) * len(self) + 1 + count for count in itertools.count(passed))
        batches = itertools.chain(
            loader.epoch(next(passes), skipped), itertools.chain.from_iterable(loader.epoch(p) for p in passes)
        )
        yield from itertools.islice(batches, len(self) - start)
