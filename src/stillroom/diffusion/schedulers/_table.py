"""The schedulers by the key of their solver, and the one for a stored sampler."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stillroom.diffusion.amed.sampler import AMEDSampler
from stillroom.diffusion.sampler import Sampler, start_file
from stillroom.diffusion.schedulers._amed import StillroomAMEDScheduler
from stillroom.diffusion.schedulers._scheduler import PlanScheduler
from stillroom.diffusion.schedulers._solvers import (
    StillroomDEISScheduler,
    StillroomDPM2Scheduler,
    StillroomDPMppScheduler,
    StillroomEulerScheduler,
    StillroomFittedScheduler,
    StillroomHeunScheduler,
    StillroomIPNDMScheduler,
    StillroomIPNDMVScheduler,
    StillroomUniPCScheduler,
)
from stillroom.diffusion.solvers import solver_options
from stillroom.files import plain

__all__ = ["SCHEDULERS", "scheduler_for"]

SCHEDULERS: dict[str, type[PlanScheduler]] = {
    "euler": StillroomEulerScheduler,
    "heun": StillroomHeunScheduler,
    "dpm2": StillroomDPM2Scheduler,
    "ipndm": StillroomIPNDMScheduler,
    "ipndm_v": StillroomIPNDMVScheduler,
    "deis": StillroomDEISScheduler,
    "dpmpp": StillroomDPMppScheduler,
    "unipc": StillroomUniPCScheduler,
}


def scheduler_for(sampler: Sampler | AMEDSampler | str | Path, config: Mapping[str, Any]) -> PlanScheduler:
    """Return the scheduler that samples as a stored sampler does: solver, options, noise levels, first step.

    Args:
        sampler: What a search or a training returned, or its file.
        config: Of the pipeline's own scheduler (``pipe.scheduler.config``): the noise levels the model was trained on.

    Returns:
        The scheduler; an AMED that reads the network's bottleneck wants ``scheduler.attach(pipe.unet)``.

    Raises:
        InputError: The file holds none, or a sampler that no scheduler has.

    Example:
        >>> from stillroom.diffusion.solvers.euler import Euler
        >>> scheduler = scheduler_for(Sampler(Euler(), (10.0, 1.0, 0.0)), {})
        >>> scheduler.set_timesteps(2)
        >>> scheduler.sigmas
        tensor([10.,  1.,  0.])
    """
    file = sampler if isinstance(sampler, str | Path) else None
    if isinstance(sampler, AMEDSampler) or str(file).endswith(".safetensors"):
        given = {} if file is None else {"amed_file": str(file)}
        amed: StillroomAMEDScheduler = StillroomAMEDScheduler.from_config(dict(config), **given)
        return amed.use(sampler) if isinstance(sampler, AMEDSampler) else amed
    found = sampler if isinstance(sampler, Sampler) else Sampler.load(sampler)
    key, options = solver_options(found.solver)
    kind = {**SCHEDULERS, "fitted": StillroomFittedScheduler}[key]
    scheduler: PlanScheduler = kind.from_config(
        dict(config),
        **plain(kind.options_of(options)),
        schedule_sigmas=list(found.sigmas),
        afs=found.afs,
        denoise_to_zero=found.denoise_to_zero,
        schedule_start=str(start_file(file)) if file is not None and found.start is not None else None,
    )
    return scheduler if found.start is None or file is not None else scheduler.carry(found.start)
