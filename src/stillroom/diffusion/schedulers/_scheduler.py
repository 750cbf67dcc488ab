"""The scheduler that every solver shares: diffusers' interface around a plan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from diffusers.utils.outputs import BaseOutput
from torch import Tensor

from stillroom.diffusion.schedulers._amed_run import AMEDRun
from stillroom.diffusion.schedulers._levels import exact_levels
from stillroom.diffusion.schedulers._place import mixed, nearest
from stillroom.diffusion.schedulers._run import Run, rest_of, scaled, start_of
from stillroom.diffusion.schedulers._spaces import Preconditioned, VariancePreserving
from stillroom.diffusion.schedulers._stored import StoredScheduler
from stillroom.diffusion.schedulers._trained import Trained
from stillroom.diffusion.solvers import make_solver
from stillroom.diffusion.solvers.plan import Plan, Solver, as_sigmas, with_final_denoising
from stillroom.errors import InputError

__all__ = ["PlanScheduler", "StepOutput"]


@dataclass
class StepOutput(BaseOutput):
    """What ``step`` returns.

    Args:
        prev_sample: The sample at the next evaluation of the model.
        pred_original_sample: The denoised sample that this evaluation said.
    """

    prev_sample: Tensor
    pred_original_sample: Tensor | None = None


class PlanScheduler(StoredScheduler):
    """A scheduler of diffusers that runs a solver's plan, the same numbers by the same rule as ``sample``.

    Samples stay in the space pipelines expect: variance preserving for discrete models (``init_noise_sigma`` is 1 and
    ``scale_model_input`` changes nothing), ``(1 - t) x0 + t z`` for flows, ``x0 + sigma z`` for models with
    ``sigma_data``. The state is kept in float32 (or float64) whatever the type of the sample.
    """

    order = 1
    solver: ClassVar[str]  # key in SOLVERS
    names: ClassVar[dict[str, str]] = {}  # option of the solver -> option of the scheduler
    predictions: ClassVar[dict[str, Any]] = {}  # what the solver extrapolates -> how the scheduler's option says it
    inner_spacing: ClassVar[bool] = False  # spaces timesteps as diffusers' multistep schedulers do

    def _solver(self) -> Solver:
        options = {name: self.config[option] for name, option in self.names.items()}
        if "predict" in options:
            said = options["predict"]
            options["predict"] = next((key for key, value in self.predictions.items() if value == said), None)
            if options["predict"] is None:
                known = ", ".join(map(repr, self.predictions.values()))
                raise InputError(f"{self.names['predict']} is {said!r}; it must be one of {known}")
        return make_solver(self.solver, **options)

    @classmethod
    def options_of(cls, options: Mapping[str, Any]) -> dict[str, Any]:
        """Return the scheduler's options for those of a solver."""
        return {
            cls.names[name]: cls.predictions[value] if name == "predict" else value for name, value in options.items()
        }

    def _prepare(self) -> None:
        super()._prepare()
        config = self.config
        self._trained = Trained(self.config)
        self.betas = torch.tensor(self._trained.betas, dtype=torch.float32)
        self.alphas = 1.0 - self.betas
        self.alphas_cumprod = torch.tensor(self._trained.products, dtype=torch.float32)
        self._solver()  # refuses options that do not exist
        self.num_inference_steps: int | None = None
        self._step_index: int | None = None
        self._begin_index: int | None = None
        self._plan: Plan | None = None
        self._run: Run | AMEDRun | None = None
        self.sigma_min, self.sigma_max = self._trained.range
        self.init_noise_sigma = self._trained.start_scale(self.sigma_max)
        self.sigmas = torch.tensor(self._trained.training_levels, dtype=torch.float32)
        self.timesteps = torch.arange(len(self.sigmas) - 1, -1, -1)
        if self._trained.is_flow:
            self.timesteps = self.sigmas * config.num_train_timesteps

    @property
    def _skipped(self) -> int:
        """Number of evaluations that the analytical first step saves."""
        return int(self.config.afs)

    # Schedule

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        sigmas: Sequence[float] | Tensor | None = None,
        mu: float | None = None,
        timesteps: Sequence[float] | Tensor | None = None,
    ) -> None:
        """Choose where the model is evaluated, and begin a new trajectory.

        Args:
            num_inference_steps: Number of steps of the configured schedule.
            device: Where ``timesteps`` are put.
            sigmas: The noise levels themselves, falling, honoured exactly whatever else is configured. The last one is
                where sampling ends; only of a flow, whose pipelines leave it out, a final 0 is added. The uniform grid
                that flow pipelines pass by themselves means their number of steps.
            mu: Dynamic shift of a flow's default schedule.
            timesteps: The timesteps instead, one per step; where sampling ends is ``final_sigmas_type``.

        Raises:
            InputError: None of them is given, or they contradict each other, or the schedule is none.
        """
        if sigmas is not None and timesteps is not None:
            raise InputError("pass sigmas or timesteps, not both")
        stored = self.config.schedule_sigmas
        self._is_stored = stored is not None and sigmas is None and timesteps is None
        self._trained = Trained(self.config, measured=self._is_stored)
        if sigmas is not None:
            values = np.asarray(sigmas.detach().cpu() if isinstance(sigmas, Tensor) else sigmas, dtype=np.float64)
            grid = np.linspace(1, 1 / max(len(values), 1), len(values))
            if self._trained.is_flow and np.allclose(values, grid, rtol=0, atol=1e-6):
                self.set_timesteps(len(values), device, mu=mu)
                return
            levels = exact_levels(values.tolist(), num_inference_steps, append_zero=self._trained.is_flow)
        elif timesteps is not None:
            levels = [*self._trained.levels_at(timesteps), self._trained.end]
        elif num_inference_steps is None:
            raise InputError("set_timesteps needs num_inference_steps, sigmas or timesteps")
        else:
            # Pipelines count timesteps: the first step may need none, the final denoising one.
            more = self._skipped - int(self.config.denoise_to_zero) if self.order == 1 else 0
            steps = int(num_inference_steps) + more
            levels = stored or self._trained.default_levels(steps, mu, self.inner_spacing)
            if len(levels) - 1 != steps:
                raise InputError(
                    f"the stored schedule is one of {len(levels) - 1 - more} inference steps; pass "
                    f"num_inference_steps={len(levels) - 1 - more}, not {num_inference_steps}"
                )
        if sigmas is None and not self._is_stored:
            levels = np.asarray(levels, dtype=np.float32).tolist()  # exactly what scheduler.sigmas shows
        plan = self._solver().plan(as_sigmas(levels))
        if self.config.denoise_to_zero and sigmas is None and timesteps is None:
            plan = with_final_denoising(plan)
        self._set_plan(plan, device)
        self.num_inference_steps = len(self.timesteps) if self.order == 1 else len(plan.sigmas) - 1

    def _set_plan(self, plan: Plan, device: str | torch.device | None) -> None:
        space, skipped = self._trained.space, self._skipped
        if skipped and len(plan.calls) == 1:
            raise InputError("afs replaces the only evaluation of the model; use more steps")
        self._plan = plan
        evaluations = [call.sigma for call in plan.calls[skipped:]]
        times = np.array([space.timestep(sigma) for sigma in evaluations])
        whole = times.round()
        if self.config.integer_timesteps or (
            isinstance(space, VariancePreserving) and np.abs(times - whole).max() < 1e-3
        ):
            self.timesteps = torch.tensor(whole, dtype=torch.int64, device=device)
        else:
            self.timesteps = torch.tensor(times, dtype=torch.float32, device=device)
        self._times = self.timesteps.tolist()
        self.sigmas = torch.tensor([space.shown(s) for s in (*evaluations, plan.sigmas[-1])], dtype=torch.float32)
        self.init_noise_sigma = self._trained.start_scale(plan.sigmas[0])
        if skipped:
            self.init_noise_sigma *= (
                start_of(plan, space) * space.scale(plan.calls[1].sigma) / space.scale(plan.calls[0].sigma)
            )
        self._step_index = self._begin_index = self._run = None

    # Place in the schedule

    @property
    def step_index(self) -> int | None:
        """Number of the next evaluation, ``None`` before the first."""
        return self._step_index

    @property
    def begin_index(self) -> int | None:
        """Number of the first evaluation, ``None`` unless a pipeline set it."""
        return self._begin_index

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Begin at this evaluation, as image-to-image pipelines do."""
        self._begin_index = begin_index

    def index_for_timestep(self, timestep: float | Tensor, schedule_timesteps: Tensor | None = None) -> int:
        """Return the number of the evaluation at a timestep; of two at the same one, that which begins a step.

        An entry of ``timesteps`` is found by its place in memory, without reading it; else the nearest one is taken.
        """
        if schedule_timesteps is None:
            near = nearest(self._times, timestep, self.timesteps)
        else:
            near = nearest(schedule_timesteps.tolist(), timestep)
        return next((k for k in near if self._begins_step(k)), near[0])

    def _begins_step(self, index: int) -> bool:
        call = index + self._skipped
        calls = self._plan.calls if self._plan is not None else ()
        return index == 0 or call >= len(calls) or calls[call - 1].step != calls[call].step

    def _started(self, timestep: float | Tensor) -> Run | AMEDRun:
        """Return the trajectory; at its first evaluation, find where it begins."""
        if self._plan is None:
            raise InputError("the scheduler has no timesteps yet; call set_timesteps first")
        if self._step_index is None or self._run is None:
            index = self.index_for_timestep(timestep) if self._begin_index is None else self._begin_index
            if not 0 <= index < len(self._times):
                raise InputError(f"begin_index is {index}, but there are {len(self._times)} evaluations")
            self._run = self._begin(self._plan, index)
            self._step_index = index
        if self._step_index >= len(self._times):
            raise InputError(f"all {len(self._times)} evaluations were made; call set_timesteps before sampling again")
        return self._run

    def _begin(self, plan: Plan, index: int) -> Run | AMEDRun:
        """Return a new trajectory that begins at this evaluation."""
        skipped = self._skipped
        rest = plan if index == 0 else rest_of(plan, self._solver(), index + skipped)
        start = self.start if index == 0 and self._is_stored else None
        return Run(rest, self._trained.space, self.config, afs=bool(skipped and index == 0), start=start)

    def _stepped(self) -> None:
        """Do what is left after an evaluation."""

    def __len__(self) -> int:
        return int(self.config.num_train_timesteps)

    # Sampling

    def scale_model_input(self, sample: Tensor, timestep: float | Tensor | None = None) -> Tensor:
        """Return the model's input: the sample itself, but for models with ``sigma_data`` and for a Gaussian start."""
        preconditioned = isinstance(self._trained.space, Preconditioned)
        if self._plan is None or not (preconditioned or self.start is not None):
            return sample
        run = self._started(self.timesteps[0] if timestep is None else timestep)
        sample = run.moved(sample)
        return scaled(sample, self._trained.space.input_scale(run.sigma)) if preconditioned else sample

    def step(
        self,
        model_output: Tensor,
        timestep: float | Tensor,
        sample: Tensor,
        generator: Any = None,
        eta: float = 0.0,
        use_clipped_model_output: bool | None = None,
        return_dict: bool = True,
    ) -> StepOutput | tuple[Tensor, Tensor]:
        """Take one evaluation of the model and return the sample at the next one.

        Args:
            model_output: What the model said, [B, ...].
            timestep: One of ``timesteps``; read at the first step only.
            sample: What it was evaluated at, [B, ...].
            generator: Not used; the solvers are deterministic.
            eta: Must be 0, likewise.
            use_clipped_model_output: Not used.
            return_dict: Return an object rather than ``(prev_sample, pred_original_sample)``.

        Raises:
            InputError: ``set_timesteps`` was not called, all steps were taken, or ``eta`` asks for noise.
        """
        if eta:
            raise InputError(f"eta is {eta:g}, but {type(self).__name__} is deterministic; use eta 0")
        previous, denoised = self._started(timestep).step(model_output, sample)
        self._step_index = (self._step_index or 0) + 1
        self._stepped()
        return StepOutput(previous, denoised) if return_dict else (previous, denoised)

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Return noisy samples as they are at the given timesteps, each sample at its own.

        Before ``set_timesteps`` the timesteps are those of the training.
        """
        times = timesteps.reshape(-1).tolist()
        levels = self._trained.levels_at(times)
        if self._plan is not None:
            evaluated = [*(call.sigma for call in self._plan.calls[self._skipped :]), self._plan.sigmas[-1]]
            if self._begin_index is not None:
                index = self._begin_index if self._step_index is None else self._step_index
                levels = [evaluated[index]] * len(times)
            else:
                known = dict(zip(self._times, evaluated, strict=False))
                levels = [known.get(time, level) for time, level in zip(times, levels, strict=True)]
        return mixed(original_samples, noise, [self._trained.space.mixing(level) for level in levels])

    def scale_noise(self, sample: Tensor, timestep: Tensor, noise: Tensor) -> Tensor:
        """Return noisy samples of a flow; the name its pipelines use for ``add_noise``."""
        return self.add_noise(sample, noise, timestep)
