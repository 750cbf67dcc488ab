"""AMED as a scheduler: the predictor reads the network while the pipeline runs it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from stillroom.diffusion.amed.feature import bottleneck
from stillroom.diffusion.amed.sampler import AMEDSampler
from stillroom.diffusion.schedulers._amed_run import AMEDRun
from stillroom.diffusion.schedulers._levels import exact_levels
from stillroom.diffusion.schedulers._options import SchedulerOptions, configured
from stillroom.diffusion.schedulers._run import start_of
from stillroom.diffusion.schedulers._scheduler import PlanScheduler
from stillroom.diffusion.schedulers._trained import Trained
from stillroom.diffusion.solvers.euler import Euler
from stillroom.diffusion.solvers.plan import Plan, Solver
from stillroom.errors import InputError

__all__ = ["StillroomAMEDScheduler"]


@dataclass
class AMEDSchedulerOptions(SchedulerOptions):
    """Options of AMED: ``amed_file``, written by ``stillroom diffusion schedule --method amed``."""

    amed_file: str | None = None


class StillroomAMEDScheduler(PlanScheduler):
    """AMED-Solver and AMED-Plugin: a tiny network chooses the second evaluation of every step, for every sample.

    There are two timesteps for a step. The second one is known when the first evaluation is done; it is written into
    ``timesteps`` in place, so that a pipeline that iterates over them sees it. With :meth:`attach`, the network itself
    is told, each sample its own, and its bottleneck is read. The schedule is the one AMED was trained for.

    Source: Zhou, Chen, Wang, Chen, Fast ODE-based Sampling for Diffusion Models in Around 5 Steps, CVPR 2024.
    """

    order = 2
    files: ClassVar[dict[str, str]] = {"amed.safetensors": "amed_file"}
    sampler: AMEDSampler | None = None
    _hooks: tuple[Any, ...] = ()
    __init__ = configured(AMEDSchedulerOptions)

    def _solver(self) -> Solver:
        return Euler()  # of the rest of a step that a trajectory begins in

    def _prepare(self) -> None:
        super()._prepare()
        if self.config.amed_file is not None:
            self.sampler = AMEDSampler.load(self.config.amed_file)

    def use(self, sampler: AMEDSampler) -> StillroomAMEDScheduler:
        """Sample with this AMED; returns the scheduler."""
        self.sampler = sampler
        return self

    def _save_tensors(self, folder: Path) -> None:
        if self.sampler is not None:
            self.sampler.save(folder / "amed.safetensors")

    def attach(self, network: nn.Module, path: str = "mid_block") -> StillroomAMEDScheduler:
        """Read a network's bottleneck while it runs, and tell it every sample's own timestep; returns the scheduler.

        Args:
            network: What the pipeline runs, ``pipe.unet`` say; it is not changed but for two hooks.
            path: Name of the module whose output the predictor was trained on.

        Raises:
            InputError: The network has no such module.
        """
        self.detach()
        found: tuple[Any, ...] = ()
        if self.sampler is None or self.sampler.uses == "bottleneck":
            self._feature = bottleneck(network, path)
            found = (self._feature,)
        self._hooks = (*found, network.register_forward_pre_hook(self._tell, with_kwargs=True))
        return self

    def detach(self) -> None:
        """Take the hooks off the network."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = ()

    def _tell(self, network: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        told = self._run.told if isinstance(self._run, AMEDRun) else None
        if told is None:
            return None
        batch = args[0] if args else kwargs["sample" if "sample" in kwargs else "hidden_states"]
        told = told.repeat(len(batch) // len(told))  # guidance evaluates the samples twice
        if len(args) > 1:
            return (args[0], told, *args[2:]), kwargs
        return args, {**kwargs, "timestep": told}

    @property
    def _skipped(self) -> int:
        return int(self.sampler is not None and self.sampler.afs)

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        sigmas: Sequence[float] | Tensor | None = None,
        mu: float | None = None,
        timesteps: Sequence[float] | Tensor | None = None,
    ) -> None:
        """Begin a new trajectory on the schedule AMED was trained for, or on the given noise levels.

        Args:
            num_inference_steps: Its number of steps (of two evaluations), as a check.
            device: Where ``timesteps`` are put.
            sigmas: Other noise levels, in the EDM convention, falling to above 0.
            mu: Not used.
            timesteps: Not possible.

        Raises:
            InputError: There is no AMED yet, or it has another number of steps.
        """
        if self.sampler is None:
            raise InputError("the scheduler has no AMED yet; give amed_file, or call use(sampler)")
        if timesteps is not None:
            raise InputError("AMED finds half of the timesteps by itself; pass sigmas or nothing")
        self._trained = Trained(self.config, measured=True)
        sampler = self.sampler
        if sigmas is not None and not self._trained.is_flow:
            levels = exact_levels(list(map(float, sigmas)), num_inference_steps, append_zero=False)
            sampler = replace(sampler, sigmas=tuple(levels))
        steps = len(sampler.sigmas) - 1
        if sigmas is None and num_inference_steps != steps:
            raise InputError(f"this AMED was trained for {steps} steps; pass num_inference_steps={steps}")
        self._chosen = sampler
        self._set_plan(sampler.plan(), device)
        if self.timesteps.dtype == torch.int64:
            self.timesteps = self.timesteps.float()
        self.num_inference_steps = steps

    def _begin(self, plan: Plan, index: int) -> AMEDRun:
        sampler = self._chosen
        if self._hooks and sampler.uses == "bottleneck":
            sampler = replace(sampler, feature=self._feature)
        call = index + self._skipped
        afs = index == 0 and bool(self._skipped)
        return AMEDRun(
            sampler,
            self._trained.space,
            self.config,
            start=plan.calls[call].sigma,
            first=call // 2,
            inside=bool(call % 2) and not afs,
            afs=afs,
            ratio=start_of(plan, self._trained.space) if afs else 1.0,
        )

    def _stepped(self) -> None:
        told = self._run.told if isinstance(self._run, AMEDRun) else None
        if told is None or self._step_index is None:
            return
        if len(told) > 1 and not self._hooks:
            raise InputError("every sample has its own timesteps; call scheduler.attach(pipe.unet) first")
        self.timesteps[self._step_index].copy_(told.mean())
