"""One scheduler for every solver."""

from __future__ import annotations

from typing import Any, ClassVar

from stillroom.diffusion.schedulers._options import (
    DEISOptions,
    DPM2Options,
    DPMppOptions,
    FittedOptions,
    IPNDMOptions,
    IPNDMVOptions,
    SchedulerOptions,
    UniPCOptions,
    configured,
)
from stillroom.diffusion.schedulers._scheduler import PlanScheduler

__all__ = [
    "StillroomDEISScheduler",
    "StillroomDPM2Scheduler",
    "StillroomDPMppScheduler",
    "StillroomEulerScheduler",
    "StillroomFittedScheduler",
    "StillroomHeunScheduler",
    "StillroomIPNDMScheduler",
    "StillroomIPNDMVScheduler",
    "StillroomUniPCScheduler",
]


class StillroomEulerScheduler(PlanScheduler):
    """Euler's method, the same as DDIM without noise; see :class:`~stillroom.diffusion.solvers.euler.Euler`.

    Example:
        >>> scheduler = StillroomEulerScheduler()
        >>> scheduler.set_timesteps(sigmas=[80.0, 1.0, 0.0])
        >>> scheduler.sigmas
        tensor([80.,  1.,  0.])
    """

    solver = "euler"
    __init__ = configured(SchedulerOptions)


class StillroomHeunScheduler(PlanScheduler):
    """Heun's method; see :class:`~stillroom.diffusion.solvers.two_stage.Heun`.

    There are two timesteps for a step, one for a step to noise level 0.
    """

    solver = "heun"
    order = 2
    __init__ = configured(SchedulerOptions)


class StillroomDPM2Scheduler(PlanScheduler):
    """DPM-Solver-2; see :class:`~stillroom.diffusion.solvers.two_stage.DPM2`.

    There are two timesteps for a step, one for a step to noise level 0.
    """

    solver = "dpm2"
    order = 2
    names: ClassVar[dict[str, str]] = {"r": "r"}
    __init__ = configured(DPM2Options)


class StillroomIPNDMScheduler(PlanScheduler):
    """iPNDM; see :class:`~stillroom.diffusion.solvers.adams_bashforth.IPNDM`."""

    solver = "ipndm"
    names: ClassVar[dict[str, str]] = {"order": "solver_order", "max_ratio": "max_ratio"}
    __init__ = configured(IPNDMOptions)


class StillroomIPNDMVScheduler(PlanScheduler):
    """iPNDM with variable-step coefficients; see :class:`~stillroom.diffusion.solvers.adams_bashforth.IPNDMV`."""

    solver = "ipndm_v"
    names: ClassVar[dict[str, str]] = {
        "order": "solver_order",
        "coefficients": "coefficients",
        "max_ratio": "max_ratio",
    }
    __init__ = configured(IPNDMVOptions)


class StillroomDEISScheduler(PlanScheduler):
    """DEIS; see :class:`~stillroom.diffusion.solvers.deis.DEIS`."""

    solver = "deis"
    inner_spacing = True
    names: ClassVar[dict[str, str]] = {
        "order": "solver_order",
        "mode": "deis_mode",
        "quadrature": "quadrature",
        "max_ratio": "max_ratio",
    }
    __init__ = configured(DEISOptions)


class StillroomDPMppScheduler(PlanScheduler):
    """DPM-Solver++; see :class:`~stillroom.diffusion.solvers.dpmpp.DPMpp`."""

    solver = "dpmpp"
    inner_spacing = True
    names: ClassVar[dict[str, str]] = {
        "order": "solver_order",
        "predict": "algorithm_type",
        "lower_order_final": "lower_order_final",
        "third_order": "third_order",
        "max_ratio": "max_ratio",
    }
    predictions: ClassVar[dict[str, Any]] = {"denoised": "dpmsolver++", "noise": "dpmsolver"}
    __init__ = configured(DPMppOptions)


class StillroomUniPCScheduler(PlanScheduler):
    """UniPC; see :class:`~stillroom.diffusion.solvers.unipc.UniPC`."""

    solver = "unipc"
    inner_spacing = True
    names: ClassVar[dict[str, str]] = {
        "order": "solver_order",
        "variant": "solver_type",
        "predict": "predict_x0",
        "lower_order_final": "lower_order_final",
        "max_ratio": "max_ratio",
    }
    predictions: ClassVar[dict[str, Any]] = {"denoised": True, "noise": False}
    __init__ = configured(UniPCOptions)


class StillroomFittedScheduler(PlanScheduler):
    """A multistep rule fitted to a model; see :class:`~stillroom.diffusion.solvers.fitted.Fitted`.

    It is made by ``scheduler_for``, of the file that ``stillroom diffusion schedule --method auto`` wrote.
    """

    solver = "fitted"
    names: ClassVar[dict[str, str]] = {"rows": "rows"}
    __init__ = configured(FittedOptions)
