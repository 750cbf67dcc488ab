"""One trajectory of a scheduler: the plan that is left, its numbers on the device, and the solver's memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from stillroom.diffusion.denoiser import per_sample
from stillroom.diffusion.schedulers._spaces import Space
from stillroom.diffusion.solvers.plan import (
    JUMP,
    Call,
    Coefficients,
    Memory,
    Plan,
    Solver,
    Update,
    advance,
    begin,
    coefficients,
)
from stillroom.diffusion.start import GaussianStart
from stillroom.errors import InputError

__all__ = ["Run", "denoised_of", "rest_of", "scaled", "start_of", "threshold"]


def start_of(plan: Plan, space: Space) -> float:
    """Return the next point of evaluation over the first one if the first output is the unit-variance prior's."""
    call = plan.calls[0]
    prior = space.prior(call.sigma)
    if not call.update.weights:
        return prior
    return call.update.state + call.update.weights[0] * (prior if plan.history == "denoised" else 1 - prior)


def rest_of(plan: Plan, solver: Solver, first: int) -> Plan:
    """Return the plan of a trajectory that begins at evaluation ``first``: with fresh history, and as many evaluations.

    Where that is the second evaluation of a step, the rest of the step is Euler's.
    """
    if first == 0:
        return plan
    call = plan.calls[first]
    if plan.calls[first - 1].step != call.step:
        return solver.plan(plan.sigmas[call.step :])
    s, t = call.sigma, plan.sigmas[call.step + 1]
    euler = Update(1.0, (t / s - 1,)) if plan.history == "residual" else Update(t / s, (1 - t / s,))
    rest = plan.sigmas[call.step + 1 :]
    tail = solver.plan(rest).calls if len(rest) > 1 else ()
    calls = (Call(s, 0, None, euler if t else JUMP), *(later._replace(step=later.step + 1) for later in tail))
    return Plan((s, *rest), plan.history, calls)


def scaled(x: Tensor, factor: Any) -> Tensor:
    """Return the product with a number or with one [B] for every sample; the tensor itself for a factor of one."""
    if isinstance(factor, Tensor):
        return x * per_sample(factor, x)
    return x if factor == 1 else x * factor


def threshold(denoised: Tensor, config: Any) -> Tensor:
    """Apply dynamic thresholding as the scheduler's configuration says (the names are those of diffusers)."""
    flat = denoised.abs().flatten(1)
    limit = flat.quantile(config.dynamic_thresholding_ratio, dim=1).clamp(1, config.sample_max_value)
    limit = limit.view(-1, *(1,) * (denoised.ndim - 1))
    return denoised.clamp(-limit, limit) / limit


def denoised_of(x: Tensor, output: Tensor, sigma: Any, space: Space, config: Any) -> Tensor:
    """Return the denoised sample that the model's output stands for, at one noise level or one [B] for every sample."""
    if config.variance_type in ("learned", "learned_range") and output.shape[1] == 2 * x.shape[1]:
        output = output[:, : x.shape[1]]
    if output.shape != x.shape:
        raise InputError(f"the model returned {tuple(output.shape)} for a sample of {tuple(x.shape)}")
    state, share = space.rule(config.prediction_type, sigma)
    if isinstance(share, Tensor):
        denoised = torch.addcmul(scaled(x, state), per_sample(share, x), output.to(x.dtype))
    elif isinstance(state, float) and state == 0:
        denoised = scaled(output, share)
    else:
        denoised = torch.add(scaled(x, state), output, alpha=share)
    return threshold(denoised.to(x.dtype), config) if config.thresholding else denoised


class Handed:
    """The last state in full precision, as long as the pipeline hands back what it was given.

    A pipeline in half precision rounds every sample it holds; the solver goes on from what it computed.
    """

    def __init__(self) -> None:
        self._sample: Tensor | None = None
        self._version = 0

    def give(self, sample: Tensor) -> Tensor:
        """Remember a sample that the pipeline gets."""
        self._sample = None if sample.is_inference() else sample  # its changes could not be noticed
        self._version = 0 if self._sample is None else sample._version
        return sample

    def is_back(self, sample: Tensor) -> bool:
        """Return whether this is that sample, unchanged."""
        return sample is self._sample and sample._version == self._version


class Run:
    """The solver's side of a trajectory; everything on the host is decided before the first step."""

    def __init__(
        self, plan: Plan, space: Space, config: Any, *, afs: bool = False, start: GaussianStart | None = None
    ) -> None:
        self.plan = plan
        self.space = space
        self.config = config
        self.k = int(afs)
        self.levels = (*(call.sigma for call in plan.calls), plan.sigmas[-1])
        self.memory: Memory | None = None
        self.handed = Handed()
        self.start = start
        self.started = False
        self.table: Coefficients | None = None

    @property
    def sigma(self) -> float:
        """Noise level of the next evaluation."""
        return self.levels[self.k]

    def moved(self, sample: Tensor) -> Tensor:
        """Return what the model is to see of the pipeline's noise: the noise where the Gaussian start carries it."""
        if self.start is None or self.k > 0:
            return sample
        self.started = True
        return scaled(self._carried(sample), self.space.scale(self.sigma)).to(sample.dtype)

    def step(self, output: Tensor, sample: Tensor) -> tuple[Tensor, Tensor]:
        """Return the sample at the next evaluation, and the denoised sample of this one."""
        k = self.k
        if self.memory is None or self.table is None:
            if self.start is not None and not self.started:
                raise InputError("this pipeline does not call scale_model_input, where a Gaussian start begins")
            x = self._state(sample) if self.start is None else self._carried(sample)
            self.table = coefficients(self.plan, x)
            self.memory = begin(self.plan, x)
            if k == 1:  # the evaluation before was the prior's, which only scales
                start = x / start_of(self.plan, self.space)
                prior = start * self.space.prior(self.levels[0])
                memory = advance(self.plan, self.table, 0, begin(self.plan, start), prior)
                self.memory = memory._replace(x=x)
        elif not self.handed.is_back(sample):
            self.memory = self.memory._replace(x=self._state(sample))
        denoised = denoised_of(self.memory.x, output, self.sigma, self.space, self.config)
        self.memory = advance(self.plan, self.table, k, self.memory, denoised)
        self.k = k + 1
        previous = scaled(self.memory.x, self.space.scale(self.levels[k + 1])).to(sample.dtype)
        return self.handed.give(previous), denoised.to(sample.dtype)

    def _carried(self, noise: Tensor) -> Tensor:
        assert self.start is not None  # asked only where there is one
        return self.start(noise if noise.dtype == torch.float64 else noise.float(), self.sigma)

    def _state(self, sample: Tensor) -> Tensor:
        x = sample if sample.dtype == torch.float64 else sample.float()
        return scaled(x, 1 / self.space.scale(self.levels[self.k])).contiguous()
