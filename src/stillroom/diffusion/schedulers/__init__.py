"""Schedulers of diffusers for every solver of stillroom: the same updates as ``sample``, in any pipeline."""

try:
    import diffusers as _diffusers  # noqa: F401
except ModuleNotFoundError as error:
    from stillroom.errors import MissingExtraError

    if error.name != "diffusers":
        raise
    raise MissingExtraError("diffusers", "diffusion") from None

from diffusers.schedulers.scheduling_utils import SchedulerMixin

from stillroom.diffusion.schedulers._amed import StillroomAMEDScheduler
from stillroom.diffusion.schedulers._scheduler import PlanScheduler, StepOutput
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
from stillroom.diffusion.schedulers._table import SCHEDULERS, scheduler_for

__all__ = [
    "SCHEDULERS",
    "PlanScheduler",
    "SchedulerMixin",
    "StepOutput",
    "StillroomAMEDScheduler",
    "StillroomDEISScheduler",
    "StillroomDPM2Scheduler",
    "StillroomDPMppScheduler",
    "StillroomEulerScheduler",
    "StillroomFittedScheduler",
    "StillroomHeunScheduler",
    "StillroomIPNDMScheduler",
    "StillroomIPNDMVScheduler",
    "StillroomUniPCScheduler",
    "scheduler_for",
]

# A stored pipeline names this module, and diffusers looks for its own base class in it when it loads the pipeline.
for _kind in (StillroomAMEDScheduler, StillroomFittedScheduler, *SCHEDULERS.values()):
    _kind.__module__ = __name__
