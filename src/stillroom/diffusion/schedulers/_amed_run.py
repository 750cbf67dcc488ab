"""One trajectory of AMED in a pipeline: the step rules wait for the model, and tell it where it is evaluated."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import torch
from torch import Tensor

from stillroom.diffusion.amed.predictor import Prediction
from stillroom.diffusion.amed.sampler import AMEDSampler, levels_of, reader
from stillroom.diffusion.amed.steps import Memory, evaluations
from stillroom.diffusion.schedulers._run import Handed, denoised_of, scaled
from stillroom.diffusion.schedulers._spaces import Space

__all__ = ["AMEDRun"]

Steps = Generator[tuple[Tensor, Tensor], Tensor, tuple[Memory, Prediction]]


class AMEDRun:
    """The solver's side of a trajectory whose noise levels are only known on the way.

    Args:
        sampler: What decides; bound to the network whose bottleneck it reads.
        space: The model's.
        config: The scheduler's.
        start: Noise level of the first evaluation on the host.
        first: Number of the step it begins with.
        inside: It begins at the second evaluation of that step, whose rest is then Euler's.
        afs: The first evaluation is the prior's.
        ratio: ``x~ / x`` of that first evaluation.
    """

    def __init__(
        self,
        sampler: AMEDSampler,
        space: Space,
        config: Any,
        *,
        start: float,
        first: int = 0,
        inside: bool = False,
        afs: bool = False,
        ratio: float = 1.0,
    ) -> None:
        self.sampler, self.space, self.config = sampler, space, config
        self.k, self.inside, self.afs, self.ratio = first, inside, afs, ratio
        self.sigma: Any = start
        self.told: Tensor | None = (
            None  # [B] or [1], what the model is told at the next evaluation, if not known before
        )
        self.handed = Handed()
        self._steps: Steps | None = None
        self._x: Tensor | None = None  # the state of the next evaluation
        self._levels: Tensor | None = None

    def moved(self, sample: Tensor) -> Tensor:
        """Return what the model is to see of the pipeline's sample: just that."""
        return sample

    def step(self, output: Tensor, sample: Tensor) -> tuple[Tensor, Tensor]:
        """Return the sample at the next evaluation, and the denoised sample of this one."""
        x = self._state(sample)
        if self._levels is None:
            self._levels = levels_of(self.sampler.sigmas, x.device)
            self._begin(x)
        denoised = denoised_of(x, output, self.sigma, self.space, self.config)
        self._next(x, denoised)
        assert self._x is not None  # a state follows every evaluation
        previous = scaled(self._x, self.space.scale(self.sigma)).to(sample.dtype)
        return self.handed.give(previous), denoised.to(sample.dtype)

    def _state(self, sample: Tensor) -> Tensor:
        if self._x is not None and self.handed.is_back(sample):
            return self._x
        x = sample if sample.dtype == torch.float64 else sample.float()
        return scaled(x, 1 / self.space.scale(self.sigma)).contiguous()

    def _begin(self, x: Tensor) -> None:
        if not self.inside:
            self._open(Memory(x / self.ratio))

    def _open(self, memory: Memory) -> tuple[Tensor, Tensor]:
        """Begin step k and return its first evaluation."""
        assert self._levels is not None  # set at the first step
        predictor = self.sampler.predictor.to(memory.x.device)
        read = reader(self.sampler.uses, self.sampler.feature)
        self._steps = evaluations(
            self.sampler.student, predictor, memory, self.k, self._levels, read=read, afs=self.afs and self.k == 0
        )
        return next(self._steps)

    def _next(self, x: Tensor, denoised: Tensor) -> None:
        """Take the denoised sample and move to the next evaluation."""
        self.told = None
        if self._steps is None:  # began inside a step
            share = self.sampler.sigmas[self.k + 1] / self.sigma
            memory = Memory(torch.lerp(denoised, x, share))
        else:
            try:
                self._x, level = self._steps.send(denoised)
            except StopIteration as done:
                memory = done.value[0]
            else:
                # As wide as the levels are: what the model is told and the scale of its input follow from it.
                self.sigma = level.double() if level.device.type != "mps" else level
                self.told = self.space.timesteps(self.sigma).float()
                return
        self.k += 1
        self.sigma = self.sampler.sigmas[self.k]
        self._x = memory.x
        if self.k < len(self.sampler.sigmas) - 1:
            self._open(memory)
