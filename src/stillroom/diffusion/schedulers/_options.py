"""The configuration of the schedulers: the names and defaults of diffusers, and what is our own."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from diffusers.configuration_utils import register_to_config

__all__ = [
    "DEISOptions",
    "DPM2Options",
    "DPMppOptions",
    "FittedOptions",
    "IPNDMOptions",
    "IPNDMVOptions",
    "SchedulerOptions",
    "UniPCOptions",
    "configured",
]


@dataclass
class SchedulerOptions:
    """What every scheduler knows; names and defaults are those of diffusers where it has the option.

    Args:
        num_train_timesteps: Noise levels the model was trained on.
        beta_start: First value of the training noise schedule.
        beta_end: Last one.
        beta_schedule: ``linear``, ``scaled_linear``, ``squaredcos_cap_v2``, ``exp``, ``laplace`` or ``sigmoid``.
        trained_betas: The training noise schedule itself, instead of the three options above.
        prediction_type: What the model returns.
        thresholding: Dynamic thresholding of the denoised sample; only for pixels in -1..1.
        dynamic_thresholding_ratio: Its quantile.
        sample_max_value: Largest value it lets through before it divides.
        variance_type: ``learned`` or ``learned_range``: the second half of the model's channels is a variance.
        timestep_spacing: Timesteps of the default schedule: ``linspace``, ``leading`` or ``trailing``.
        steps_offset: Added to the timesteps of ``leading``.
        lambda_min_clipped: Lowest log-SNR (half, as in DPM-Solver) where these timesteps begin; for cosine schedules.
        rescale_betas_zero_snr: Rescale the training noise schedule so that it ends in pure noise.
        final_sigmas_type: Whether a schedule made from a number of steps ends at ``zero`` or at ``sigma_min``.
        use_karras_sigmas: The same as ``schedule="polynomial"``.
        use_exponential_sigmas: The same as ``schedule="logsnr"``.
        use_beta_sigmas: The same as ``schedule="beta"``.
        use_lu_lambdas: The same as ``schedule="logsnr"``.
        sigma_min: Lowest noise level of the named schedules; by default the lowest the model was trained on.
        sigma_max: Highest one; by default the highest the model was trained on.
        sigma_data: Standard deviation of the data of a model with EDM preconditioning; ``None``: a model without.
        timestep_type: ``discrete``: the model is told the (fractional) index of the noise level; ``continuous``: a
            quarter of its logarithm.
        use_flow_sigmas: The model was trained by flow matching; implied by ``prediction_type="flow_prediction"``.
        shift: Static shift of the time of a flow, ``k t / (1 + (k - 1) t)``.
        flow_shift: Another name of ``shift``.
        use_dynamic_shifting: Shift the time of a flow by the ``mu`` that the pipeline passes.
        base_shift: Read by pipelines to compute ``mu``.
        max_shift: Likewise.
        base_image_seq_len: Likewise.
        max_image_seq_len: Likewise.
        time_shift_type: ``exponential`` or ``linear``: how ``mu`` shifts.
        shift_terminal: Stretch the times of a flow so that the last evaluation is at this one.
        schedule: Name of a schedule in ``stillroom.diffusion.schedules.SCHEDULES``; ``None``: ``timestep_spacing``.
        schedule_options: Options of that schedule, such as ``{"rho": 5.0}``.
        schedule_file: A file written by ``stillroom diffusion schedule``: its noise levels are used, whatever the
            options above. They are copied into ``schedule_sigmas``, so that a saved scheduler needs no file.
        schedule_sigmas: The noise levels to sample at, in the EDM convention, whatever the number of steps asked for
            was; it must agree.
        schedule_start: File of the Gaussian start that belongs to them, which carries the noise to the first of them;
            the pipeline must call ``scale_model_input``.
        afs: Analytical first step: saves the first evaluation of the model. Of solvers with one evaluation a step,
            ``num_inference_steps`` counts those that are left.
        denoise_to_zero: One evaluation more at the last noise level, whose output is the result.
        integer_timesteps: Round what the model is told as its timestep; the noise levels stay exact.
    """

    num_train_timesteps: int = 1000
    beta_start: float = 0.0001
    beta_end: float = 0.02
    beta_schedule: str = "linear"
    trained_betas: Sequence[float] | None = None
    prediction_type: Literal["epsilon", "sample", "v_prediction", "flow_prediction"] = "epsilon"
    thresholding: bool = False
    dynamic_thresholding_ratio: float = 0.995
    sample_max_value: float = 1.0
    variance_type: str | None = None
    timestep_spacing: Literal["linspace", "leading", "trailing"] = "linspace"
    steps_offset: int = 0
    lambda_min_clipped: float = -float("inf")
    rescale_betas_zero_snr: bool = False
    final_sigmas_type: Literal["zero", "sigma_min"] = "zero"
    use_karras_sigmas: bool = False
    use_exponential_sigmas: bool = False
    use_beta_sigmas: bool = False
    use_lu_lambdas: bool = False
    sigma_min: float | None = None
    sigma_max: float | None = None
    sigma_data: float | None = None
    timestep_type: Literal["discrete", "continuous"] = "discrete"
    use_flow_sigmas: bool = False
    shift: float = 1.0
    flow_shift: float = 1.0
    use_dynamic_shifting: bool = False
    base_shift: float | None = 0.5
    max_shift: float | None = 1.15
    base_image_seq_len: int = 256
    max_image_seq_len: int = 4096
    time_shift_type: Literal["exponential", "linear"] = "exponential"
    shift_terminal: float | None = None
    schedule: str | None = None
    schedule_options: dict[str, float] | None = None
    schedule_file: str | None = None
    schedule_sigmas: Sequence[float] | None = None
    schedule_start: str | None = None
    afs: bool = False
    denoise_to_zero: bool = False
    integer_timesteps: bool = False


@dataclass
class DPM2Options(SchedulerOptions):
    """Options of DPM-Solver-2: ``r``, where between the two noise levels (in log-SNR) the second evaluation lies."""

    r: float = 0.5


@dataclass
class IPNDMOptions(SchedulerOptions):
    """Options of iPNDM: ``solver_order``, 1 to 4, lowered where steps differ by more than ``max_ratio``."""

    solver_order: int = 4
    max_ratio: float | None = None


@dataclass
class IPNDMVOptions(SchedulerOptions):
    """Options of iPNDM_v: ``solver_order``, 1 to 4, ``max_ratio``, and which ``coefficients``."""

    solver_order: int = 4
    coefficients: Literal["exact", "published"] = "exact"
    max_ratio: float | None = None


@dataclass
class DEISOptions(SchedulerOptions):
    """Options of DEIS: ``solver_order``, 1 to 4, ``max_ratio``, the variable as ``deis_mode``, the ``quadrature``."""

    solver_order: int = 2
    deis_mode: Literal["tab", "rhoab"] = "tab"
    quadrature: Literal["gauss", "published"] = "gauss"
    max_ratio: float | None = None


@dataclass
class DPMppOptions(SchedulerOptions):
    """Options of DPM-Solver++: ``dpmsolver`` as ``algorithm_type`` extrapolates the noise, ``dpmsolver++`` the data."""

    solver_order: int = 2
    algorithm_type: Literal["dpmsolver++", "dpmsolver"] = "dpmsolver++"
    lower_order_final: bool = True
    third_order: Literal["published", "exact"] = "published"
    max_ratio: float | None = None


@dataclass
class UniPCOptions(SchedulerOptions):
    """Options of UniPC: ``predict_x0`` extrapolates the data, otherwise the noise; ``solver_type`` is the variant."""

    solver_order: int = 2
    predict_x0: bool = True
    solver_type: Literal["bh1", "bh2"] = "bh2"
    lower_order_final: bool = True
    max_ratio: float | None = None


@dataclass
class FittedOptions(SchedulerOptions):
    """Options of a fitted solver: its numbers, ``rows``, which belong to one stored schedule."""

    rows: Sequence[Sequence[float]] = ()


def configured(options: type[SchedulerOptions]) -> Callable[..., None]:
    """Return an ``__init__`` with the parameters of ``options``, whose values become the scheduler's ``config``."""

    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:  # noqa: N807
        options(*args, **kwargs)  # refuses what is no option
        self._prepare()

    __init__.__signature__ = inspect.signature(options.__init__)  # type: ignore[attr-defined]
    __init__.__doc__ = options.__doc__
    registered: Callable[..., None] = register_to_config(__init__)  # type: ignore[no-untyped-call]
    return registered
