"""Schedulers of diffusers for every solver of stillroom: the same updates as ``sample``, in any pipeline."""

try:
    import diffusers as _diffusers  # noqa: F401
except ModuleNotFoundError as error:
    from stillroom.errors import MissingExtraError

    if error.name != "diffusers":
        raise
    raise MissingExtraError("diffusers", "diffusion") from None

from stillroom.diffusion.schedulers._amed import StillroomAMEDScheduler
from stillroom.diffusion.schedulers._scheduler import PlanScheduler, StepOutput
from stillroom.diffusion.schedulers._solvers import (
    StillroomDEISScheduler,
    StillroomDPM2Scheduler,
    StillroomDPMppScheduler,
    StillroomEulerScheduler,
    StillroomHeunScheduler,
    StillroomIPNDMScheduler,
    StillroomIPNDMVScheduler,
    StillroomUniPCScheduler,
)
from stillroom.diffusion.schedulers._table import SCHEDULERS, scheduler_for

__all__ = [
    "SCHEDULERS",
    "PlanScheduler",
    "StepOutput",
    "StillroomAMEDScheduler",
    "StillroomDEISScheduler",
    "StillroomDPM2Scheduler",
    "StillroomDPMppScheduler",
    "StillroomEulerScheduler",
    "StillroomHeunScheduler",
    "StillroomIPNDMScheduler",
    "StillroomIPNDMVScheduler",
    "StillroomUniPCScheduler",
    "scheduler_for",
]
