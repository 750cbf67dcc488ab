"""Choose how to sample a model by measuring it: solver, order, noise levels and start for a number of evaluations."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from stillroom.diffusion.denoiser import DenoisingModel
from stillroom.diffusion.gits import CostMatrix, jump_costs
from stillroom.diffusion.quality import rmse
from stillroom.diffusion.sampler import Sampler, steps_for
from stillroom.diffusion.sampling import Trajectory, trajectory
from stillroom.diffusion.schedules import polynomial, schedule
from stillroom.diffusion.solvers import IPNDMV, make_solver
from stillroom.diffusion.solvers.fitted import fit_multistep
from stillroom.diffusion.start import GaussianStart, fit_gaussian_start
from stillroom.diffusion.warmup import Draw, warmup
from stillroom.errors import FailureError, InputError
from stillroom.training.progress import counting

__all__ = ["COUNT", "Choice", "Measured", "choose_sampler"]

# Warm-up samples. Where a few end on another picture than the fine solution they decide the error, and few samples fit
# those by chance: on the closed form of 2,000 MNIST images at 5 evaluations, 512 gave 0.079 and 0.085, 1,024 0.065 and
# 0.074 (two seeds, other noise).
COUNT = 1024

SOLVERS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("euler", {}),
    ("heun", {}),
    ("dpmpp", {"order": 2}),
    ("dpmpp", {"order": 3}),
    ("unipc", {"order": 2}),
    ("unipc", {"order": 3}),
    ("deis", {"order": 3}),
    ("ipndm", {"order": 2}),
    ("ipndm", {"order": 4}),
)
SCHEDULES = ("polynomial", "logsnr", "time_uniform", "karras_zero", "gits")
# Where a Gaussian start may hand over to the model, and the last level before the end, in spreads of the data.
HAND_OVER = (0.5, 0.7, 1.0, 1.4)
LAST = (0.02, 0.06, 0.12)
ORDER = 8  # denoised samples a fitted step may read
KEPT = 3  # of the starts tried on few samples, those tried on all
SHRINKING = (0.25, 0.12, 0.06)  # steps of the descent in ln sigma


@dataclass(frozen=True)
class Measured:
    """A way of sampling and its distance to the reference, on noise that nothing was fitted to."""

    label: str
    sampler: Sampler
    rmse: float


@dataclass(frozen=True)
class Choice:
    """What :func:`choose_sampler` returns: the best first, and what the search cost in evaluations of one sample."""

    candidates: tuple[Measured, ...]
    evaluations: int

    @property
    def sampler(self) -> Sampler:
        """The best."""
        return self.candidates[0].sampler


@dataclass(frozen=True)
class _Warm:
    """Noise with the fine solution from it."""

    noise: Tensor
    way: Trajectory
    condition: Any

    @property
    def end(self) -> Tensor:
        return self.way.states[-1]

    def first(self, count: int) -> _Warm:
        """Return the first samples alone."""
        way = self.way
        parts = (way.states[:, :count], way.denoised[:, :count], way.derivatives[:, :count])
        condition = self.condition[:count] if isinstance(self.condition, Tensor) else self.condition
        return _Warm(self.noise[:count], Trajectory(way.sigmas, *parts, way.nfe), condition)

    def at(self, sigma: float) -> Tensor:
        """Return the solution at a noise level, by cubic Hermite interpolation in ln sigma."""
        levels = self.way.sigmas
        if sigma <= levels[-1]:
            return self.end
        i = min(sum(level > sigma for level in levels) - 1, len(levels) - 2)
        i = max(i, 0)
        high, low = levels[i], levels[i + 1]
        h = math.log(low / high)
        u = math.log(sigma / high) / h
        first = self.way.derivatives[i] * (high * h)
        last = self.way.derivatives[i + 1] * (low * h) if i + 1 < len(self.way.derivatives) else first
        return torch.lerp(self.way.states[i], self.way.states[i + 1], u * u * (3 - 2 * u)) + (
            u * (1 - u) * ((1 - u) * first - u * last)
        )


def choose_sampler(
    model: DenoisingModel,
    nfe: int,
    *,
    count: int = COUNT,
    reference_steps: int = 100,
    seed: int = 0,
    device: torch.device | str = "cpu",
    condition: Draw | None = None,
    show_progress: bool = False,
) -> Choice:
    """Measure many ways of sampling a model with ``nfe`` evaluations and return them, best first.

    The measure is the RMSE to a fine solution of the same ODE from the same noise. Tried are solvers x schedules, GITS
    among them, and multistep solvers fitted to the model's trajectories, from the largest noise level or after a
    Gaussian start, whose noise levels descend by coordinates. All is fitted on one part of the warm-up samples, the
    choice is made on the other.

    Args:
        model: The model.
        nfe: Evaluations of the model for a sample.
        count: Warm-up samples to fit on; a quarter as many more, at least 64, decide.
        reference_steps: Steps of the fine solution.
        seed: Seed of the warm-up noise; the same seed gives the same choice.
        device: Where the model computes.
        condition: Draws the conditions of a batch.
        show_progress: Show progress on standard error.

    Raises:
        InputError: A number is out of its range, or the model returned a value that is not finite.
        FailureError: Nothing fits the budget.
    """
    for name, value, least in (("nfe", nfe, 1), ("count", count, 4), ("reference_steps", reference_steps, 10)):
        if value < least:
            raise InputError(f"{name} is {value}; it must be at least {least}")
    return _Search(model, nfe, count, reference_steps, seed, device, condition).run(show_progress)


class _Search:
    """One search; counts the evaluations it spends."""

    def __init__(
        self,
        model: DenoisingModel,
        nfe: int,
        count: int,
        reference_steps: int,
        seed: int,
        device: torch.device | str,
        condition: Draw | None,
    ) -> None:
        self.model, self.nfe, self.evaluations = model, nfe, 0
        decide = max(64, count // 4)  # few could not tell candidates apart
        batches = [
            next(warmup(model, count=size, batch_size=size, seed=own, device=device, condition=condition))
            for size, own in ((count, 2 * seed), (decide, 2 * seed + 1))
        ]
        levels = polynomial(reference_steps + 1, model.sigma_min, model.sigma_max)
        self.fit, self.decide = (self._solve(noise, given, levels) for noise, given in batches)
        self.start = fit_gaussian_start(self.fit.end, sigma_max=model.sigma_max)
        self.spread = float((self.fit.end - self.fit.end.mean(0)).flatten(1).square().sum(1).mean().sqrt())

    def _solve(self, noise: Tensor, condition: Any, levels: Tensor) -> _Warm:
        way = trajectory(self.model.denoiser, noise, levels, IPNDMV(3), condition=condition)
        self.evaluations += way.nfe * len(noise)
        return _Warm(noise, way, condition)

    def run(self, show: bool) -> Choice:
        plain, starts = list(self._plain()), list(self._starts())
        found: list[Measured] = []
        descent = 2 * self.nfe * len(SHRINKING)  # fits, at least
        with counting(f"{self.nfe} evaluations", len(plain) + len(starts) + descent, show=show) as progress:
            for number, (label, sampler) in enumerate(plain, 1):
                found += self._measure(label, sampler)
                progress(number)
            coarse = self.fit.first(max(32, len(self.fit.noise) // 4))
            tried: list[tuple[float, int]] = []
            for number, (start, levels) in enumerate(starts):
                tried.append((self._fitted(start, levels, coarse)[1], number))
                progress(len(plain) + number + 1)
            best = [starts[number] for error, number in sorted(tried)[:KEPT] if math.isfinite(error)]
            again = sorted((self._fitted(*starts_of, self.fit)[1], n) for n, starts_of in enumerate(best))
            if again and math.isfinite(again[0][0]):
                start, levels = best[again[0][1]]
                found += self._measure("fitted", self._fitted(start, levels, self.fit)[0])
                levels = self._descend(start, levels)
                found += self._measure("fitted, levels searched", self._fitted(start, levels, self.fit)[0])
            progress(len(plain) + len(starts) + descent)
        if not found:
            raise FailureError(f"no way of sampling {self.model.name} with {self.nfe} evaluations gave finite samples")
        return Choice(tuple(sorted(found, key=lambda measured: measured.rmse)), self.evaluations)

    def _plain(self) -> Iterator[tuple[str, Sampler]]:
        model, way = self.model, self.fit.way
        cost = jump_costs(way.states, way.derivatives, way.sigmas) / len(self.fit.noise)
        costs = CostMatrix(way.sigmas, tuple(map(tuple, cost.tolist())))
        for (key, options), name in itertools.product(SOLVERS, SCHEDULES):
            solver = make_solver(key, **options)
            try:
                steps = steps_for(solver, self.nfe)
                if name == "gits":
                    sigmas = costs.sigmas(steps)
                else:
                    sigmas = tuple(schedule(name, steps + 1, model.sigma_min, model.sigma_max).tolist())
                sampler = Sampler(solver, sigmas)
            except InputError:  # the solver has no such budget
                continue
            if sampler.nfe == self.nfe:
                yield f"{solver.name} · {name}", sampler

    def _starts(self) -> Iterator[tuple[GaussianStart | None, tuple[float, ...]]]:
        """Yield where the fitted solvers begin: with and without a Gaussian start, evenly or denser at small noise."""
        model = self.model
        tops = [(self.start, self.spread * share) for share in HAND_OVER]
        for (start, top), share, rho in itertools.product([*tops, (None, model.sigma_max)], LAST, (1.0, 3.0, 7.0)):
            last = self.spread * share
            if not model.sigma_min < last < top <= model.sigma_max or (start and top >= model.sigma_max):
                continue
            levels = [top] if self.nfe == 1 else polynomial(self.nfe, last, top, rho=rho).tolist()
            yield start, (*levels, model.sigma_min)

    def _fitted(self, start: GaussianStart | None, levels: Sequence[float], warm: _Warm) -> tuple[Sampler, float]:
        x = warm.noise * levels[0] if start is None else start(warm.noise, levels[0])
        targets = [warm.at(level) for level in levels[1:]]
        with torch.no_grad():
            solver, end = fit_multistep(self.model.denoiser, x, levels, targets, order=ORDER, condition=warm.condition)
        self.evaluations += self.nfe * len(warm.noise)
        error = rmse(end, warm.end)
        return Sampler(solver, tuple(levels), start=start), error if math.isfinite(error) else math.inf

    def _descend(self, start: GaussianStart | None, levels: tuple[float, ...]) -> tuple[float, ...]:
        """Move one noise level after the other as long as the fitted error falls."""
        best = self._fitted(start, levels, self.fit)[1]
        free = range(0 if start is not None else 1, self.nfe)
        for step in SHRINKING:
            for _ in range(3):
                before = best
                for index, sign in itertools.product(free, (1, -1)):
                    moved = list(levels)
                    moved[index] *= math.exp(sign * step)
                    falls = all(high > 1.02 * low for high, low in itertools.pairwise(moved))
                    if not falls or moved[0] > self.model.sigma_max or (start and moved[0] >= self.model.sigma_max):
                        continue
                    error = self._fitted(start, moved, self.fit)[1]
                    if error < best:
                        best, levels = error, tuple(moved)
                if best > 0.99 * before:
                    break
        return levels

    def _measure(self, label: str, sampler: Sampler) -> list[Measured]:
        """Measure on the samples that decide; nothing when the result is not finite."""
        try:
            end = sampler(self.model.denoiser, self.decide.noise, self.decide.condition)
        except InputError:
            return []
        self.evaluations += self.nfe * len(end)
        name = f"start · {label}" if sampler.start is not None else label
        error = rmse(end, self.decide.end)
        about = {"model": self.model.name, "method": "auto", "entry": name, "rmse": error}
        return [Measured(name, Sampler(sampler.solver, sampler.sigmas, start=sampler.start, about=about), error)]
