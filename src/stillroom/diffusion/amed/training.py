"""Train AMED: the student's steps are drawn to where a teacher with more evaluations gets."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stillroom.diffusion.amed.options import AMEDOptions
from stillroom.diffusion.amed.predictor import Predictor
from stillroom.diffusion.amed.sampler import AMEDSampler, Uses, levels_of, reader
from stillroom.diffusion.amed.steps import Student
from stillroom.diffusion.amed.sweep import sweep, update
from stillroom.diffusion.denoiser import DenoisingModel
from stillroom.diffusion.sampling import trajectory
from stillroom.diffusion.schedules import schedule as schedule_of
from stillroom.diffusion.solvers import Heun, solver_options
from stillroom.diffusion.solvers.plan import Solver, as_sigmas
from stillroom.diffusion.thresholding import dynamic_threshold
from stillroom.errors import InputError, TrainingDivergedError
from stillroom.files import plain
from stillroom.training import checkpoint
from stillroom.training.progress import Progress

__all__ = ["Draw", "train_amed"]

Draw = Callable[[int, torch.Generator], Any]
ROUNDS = 20  # reports and checkpoints of a training


def train_amed(
    model: DenoisingModel,
    *,
    student: Student | None = None,
    teacher: Solver | None = None,
    steps: int = 3,
    schedule: str = "polynomial",
    schedule_options: Mapping[str, Any] | None = None,
    sigmas: Sequence[float] | None = None,
    options: AMEDOptions | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
    condition: Draw | None = None,
    folder: Path | None = None,
    resume: bool = False,
    show_progress: bool = True,
) -> AMEDSampler:
    """Train a predictor for a model; only its 9,000 parameters change.

    Source: Zhou, Chen, Wang, Chen, Fast ODE-based Sampling for Diffusion Models in Around 5 Steps, CVPR 2024,
    algorithm 1. On a CPU the result depends on the seed only, also when a killed training is resumed.

    Args:
        model: The model; it must be differentiable.
        student: How the student's steps use their two evaluations; AMED-Solver by default.
        teacher: The teacher's solver, never with an analytical first step; Heun by default. For a plugin, the solver it
            is plugged into.
        steps: Steps of the student, each of two evaluations.
        schedule: Name of the schedule of both grids, ``SCHEDULES`` in ``stillroom.diffusion.schedules``.
        schedule_options: Its options.
        sigmas: The student's noise levels, instead of ``steps`` and ``schedule`` (a searched schedule, say); the
            teacher's points between are spaced as in ``polynomial``.
        options: How to train.
        seed: Seed of the weights and of the noise.
        device: Where the model computes.
        condition: Draws the conditions of a batch, given its size and a generator; by default random classes for a
            class-conditional model.
        folder: Where checkpoints go; nothing is written without.
        resume: Continue from the newest checkpoint of the folder, or start when there is none.
        show_progress: Whether to show progress on standard error.

    Returns:
        The sampler, bound to the model; ``about`` says how the training went.

    Raises:
        InputError: An option does not fit the model, the model passes no gradient, or a checkpoint does not fit.
        TrainingDivergedError: No loss is finite any more.
        InputError: The model returned a value that is not finite on the teacher's way.
    """
    student, teacher, options = student or Student(), teacher or Heun(), options or AMEDOptions()
    device = torch.device(device)
    grid = _grid(model, steps, schedule, schedule_options, sigmas, options.intermediate)
    uses = _uses(model, options)
    if condition is None and model.classes:
        condition = _random_classes(model.classes)
    _require_gradient(model, grid, condition, device)
    generator = torch.Generator().manual_seed(seed)
    predictor = Predictor(
        scale_dir=options.scale_dir, scale_time=options.scale_time, hidden=options.hidden, generator=generator
    ).to(device)
    if options.objective == "final":
        predictor.start_plain()
    chosen = grid[:: options.intermediate + 1]
    sampler = AMEDSampler(predictor, student, chosen, options.afs, uses, feature=model.feature)
    training = _Training(model, sampler, teacher, grid, options, seed, device, condition, folder)
    training.begin(resume)
    return training.run(show_progress)


class _Training:
    """Where a training stands, and everything a checkpoint must hold."""

    def __init__(
        self,
        model: DenoisingModel,
        sampler: AMEDSampler,
        teacher: Solver,
        grid: tuple[float, ...],
        options: AMEDOptions,
        seed: int,
        device: torch.device,
        condition: Draw | None,
        folder: Path | None,
    ) -> None:
        self.model, self.sampler, self.teacher, self.grid = model, sampler, teacher, grid
        self.options, self.seed, self.device, self.condition, self.folder = options, seed, device, condition, folder
        self.read = reader(sampler.uses, sampler.feature)
        # Softmax of these are the student's steps in ln sigma, as parts of the whole.
        self.parts = (-levels_of(sampler.sigmas, device).log().diff()).log().requires_grad_()
        self.rates = [options.lr] if options.lr_levels is None else [options.lr, options.lr_levels]
        groups = [list(sampler.predictor.parameters()), [self.parts]]
        self.optimizer = torch.optim.Adam(
            [{"params": group, "lr": rate} for group, rate in zip(groups, self.rates, strict=False)]
        )
        self.identity = plain(
            {
                "model": model.name,
                "student": asdict(sampler.student),
                "teacher": dict(zip(("solver", "options"), solver_options(teacher), strict=True)),
                "sigmas": list(grid),
                "uses": sampler.uses,
                "options": asdict(options),
                "seed": seed,
            }
        )
        self.batches = math.ceil(options.trajectories / options.batch_size)
        self.round = max(1, self.batches // ROUNDS)  # batches
        self.done = 0
        self.history: list[dict[str, Any]] = []

    def begin(self, resume: bool) -> None:
        """Take up the newest checkpoint, or make sure that none is in the way."""
        if self.folder is None:
            if resume:
                raise InputError("resume needs the folder of the checkpoints; pass folder=...")
            return
        if not resume:
            if any(self.folder.glob("epoch-*.pt")):
                raise InputError(f"{self.folder} holds checkpoints already; resume or name another folder")
        elif (state := checkpoint.load_newest(self.folder, self.identity)) is not None:
            self.done, self.history = state["done"], state["history"]
            self.sampler.predictor.load_state_dict(state["predictor"])
            self.parts.data.copy_(state["parts"])
            self.optimizer.load_state_dict(state["optimizer"])

    def levels(self) -> Tensor:
        """Return the student's noise levels, [N + 1]."""
        fixed = levels_of(self.sampler.sigmas, self.device)
        if self.options.lr_levels is None:
            return fixed
        high, low = fixed[0].log(), fixed[-1].log()
        inner = torch.exp(high + (low - high) * self.parts.softmax(0).cumsum(0)[:-1])
        return torch.cat([fixed[:1], inner, fixed[-1:]])

    def run(self, show: bool) -> AMEDSampler:
        """Do the batches that are left."""
        rounds = math.ceil(self.batches / self.round)
        with Progress(self.sampler.student.name, rounds, self.round, done=self.done, show=show) as progress:
            while self.done < self.batches:
                record = self._one_round()
                self.history.append(record)
                if self.folder is not None:
                    self._save()
                progress.epoch(record["epoch"], record)
        last = self.history[-1]
        about = {
            **self.identity,
            "loss": last["train_loss"],
            "step_losses": last["step_losses"],
            "broken_gradients": sum(record["broken_gradients"] for record in self.history),
        }
        return replace(self.sampler, sigmas=tuple(self.levels().tolist()), about=about)

    def _one_round(self) -> dict[str, Any]:
        started, first = time.monotonic(), self.done
        count = min(self.round, self.batches - self.done)
        losses, broken = [], []
        for _ in range(count):
            for loss, number in self._batch(self.done):
                losses.append(loss)
                broken.append(number)
            self.done += 1
        table = torch.stack(losses).view(count, -1).double().cpu()  # [batches, updates]
        finite = table.isfinite()
        if not finite.any():
            where = f"batches {first + 1} to {self.done}"
            raise TrainingDivergedError(f"no loss is finite in {where}; lower amed.lr, now {self.options.lr:g}")
        means = torch.where(finite, table, 0).sum(0) / finite.sum(0).clamp(min=1)
        trained = count * self.options.batch_size
        return {
            "epoch": len(self.history) + 1,
            "train_loss": float(means.sum()),
            "step_losses": means.tolist(),
            "broken_gradients": int(torch.stack(broken).sum()),
            "images_per_second": trained / max(time.monotonic() - started, 1e-9),
        }

    def _batch(self, number: int) -> Iterator[tuple[Tensor, Tensor]]:
        model, sampler, options = self.model, self.sampler, self.options
        state = np.random.SeedSequence((self.seed, number)).generate_state(1, np.uint32)
        generator = torch.Generator().manual_seed(int(state[0]))
        noise = torch.randn(options.batch_size, *model.shape, generator=generator).to(self.device)
        condition = None if self.condition is None else self.condition(len(noise), generator)
        if isinstance(condition, Tensor):
            condition = condition.to(self.device)
        transform = dynamic_threshold if sampler.student.threshold else None
        way = trajectory(model.denoiser, noise, self.grid, self.teacher, condition=condition, transform=transform)
        steps = sweep(
            model.denoiser,
            sampler.student,
            sampler.predictor,
            noise,
            way.states[options.intermediate + 1 :: options.intermediate + 1],
            self.levels(),
            afs=sampler.afs,
            condition=condition,
            read=self.read,
            objective=options.objective,
        )
        share = 1.0 if options.decay == "constant" else (1 + math.cos(math.pi * number / self.batches)) / 2
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * share
        for loss, _ in steps:
            broken = update(self.optimizer, loss)
            yield loss.detach(), broken

    def _save(self) -> None:
        assert self.folder is not None
        state = {
            "identity": self.identity,
            "done": self.done,
            "history": self.history,
            "predictor": self.sampler.predictor.state_dict(),
            "parts": self.parts.detach(),
            "optimizer": self.optimizer.state_dict(),
        }
        checkpoint.save(self.folder, state, epoch=len(self.history), step=self.done)


def _grid(
    model: DenoisingModel,
    steps: int,
    name: str,
    options: Mapping[str, Any] | None,
    sigmas: Sequence[float] | None,
    intermediate: int,
) -> tuple[float, ...]:
    """Return the teacher's noise levels; every (intermediate + 1)-th is the student's."""
    if sigmas is not None:
        student = as_sigmas(sigmas)
        if student[-1] == 0:
            raise InputError("AMED needs a schedule that ends above 0: it spaces its points in ln sigma")
        parts = [
            schedule_of("polynomial", intermediate + 2, t, s).tolist()[:-1] for s, t in itertools.pairwise(student)
        ]
        return (*itertools.chain.from_iterable(parts), student[-1])
    if steps < 1:
        raise InputError(f"steps of the AMED student is {steps}; it must be at least 1")
    points = (intermediate + 1) * steps + 1
    grid = as_sigmas(schedule_of(name, points, model.sigma_min, model.sigma_max, **(options or {})))
    if grid[-1] == 0:
        raise InputError(f"AMED needs a schedule that ends above 0; {name} ends at 0: use polynomial or logsnr")
    return grid


def _uses(model: DenoisingModel, options: AMEDOptions) -> Uses:
    if options.uses == "auto":
        return "nothing" if model.feature is None else "bottleneck"
    if options.uses == "bottleneck" and model.feature is None:
        raise InputError(f"amed.uses is bottleneck, but {model.name} has no feature hooked; use denoised or nothing")
    return options.uses


def _random_classes(classes: int) -> Draw:
    return lambda count, generator: torch.randint(classes, (count,), generator=generator)


def _require_gradient(
    model: DenoisingModel, grid: Sequence[float], condition: Draw | None, device: torch.device
) -> None:
    """Refuse a model that cuts the graph: the predictor would learn nothing, silently."""
    given = None if condition is None else condition(1, torch.Generator().manual_seed(0))
    if isinstance(given, Tensor):
        given = given.to(device)
    x = torch.zeros(1, *model.shape, device=device, requires_grad=True)
    sigma = torch.tensor([grid[len(grid) // 2]], device=device, requires_grad=True)
    if not model.denoiser(x, sigma, given).requires_grad:
        raise InputError(
            f"{model.name} passes no gradient (is it run under no_grad?); AMED is trained through the model"
        )
