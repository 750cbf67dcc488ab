"""The schedulers by the key of their solver, and the one for a stored sampler."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stillroom.diffusion.sampler import Sampler
from stillroom.diffusion.schedulers._solvers import (
    SolverScheduler,
    StillroomDEISScheduler,
    StillroomDPM2Scheduler,
    StillroomDPMppScheduler,
    StillroomEulerScheduler,
    StillroomHeunScheduler,
    StillroomIPNDMScheduler,
    StillroomIPNDMVScheduler,
    StillroomUniPCScheduler,
)
from stillroom.diffusion.solvers import solver_options

__all__ = ["SCHEDULERS", "scheduler_for"]

SCHEDULERS: dict[str, type[SolverScheduler]] = {
    "euler": StillroomEulerScheduler,
    "heun": StillroomHeunScheduler,
    "dpm2": StillroomDPM2Scheduler,
    "ipndm": StillroomIPNDMScheduler,
    "ipndm_v": StillroomIPNDMVScheduler,
    "deis": StillroomDEISScheduler,
    "dpmpp": StillroomDPMppScheduler,
    "unipc": StillroomUniPCScheduler,
}


def scheduler_for(sampler: Sampler | str | Path, config: Mapping[str, Any]) -> SolverScheduler:
    """Return the scheduler that samples as a stored sampler does: solver, options, noise levels, first step.

    Args:
        sampler: What a search returned, or its file.
        config: Of the pipeline's own scheduler (``pipe.scheduler.config``): the noise levels the model was trained on.

    Raises:
        InputError: The file holds none, or a sampler that no scheduler has.

    Example:
        >>> from stillroom.diffusion.solvers.euler import Euler
        >>> scheduler = scheduler_for(Sampler(Euler(), (10.0, 1.0, 0.0)), {})
        >>> scheduler.set_timesteps(2)
        >>> scheduler.sigmas
        tensor([10.,  1.,  0.])
    """
    found = sampler if isinstance(sampler, Sampler) else Sampler.load(sampler)
    key, options = solver_options(found.solver)
    kind = SCHEDULERS[key]
    scheduler: SolverScheduler = kind.from_config(
        dict(config),
        **kind.options_of(options),
        schedule_sigmas=list(found.sigmas),
        afs=found.afs,
        denoise_to_zero=found.denoise_to_zero,
    )
    return scheduler
