"""Every deterministic stock scheduler of diffusers with each of its built-in schedules, driven by an EDM denoiser.

A scheduler only sees what a pipeline would show it: model outputs and samples in its own space. Discrete schedulers
get a model with 1,000 training steps whose noise levels run from ``sigma_min`` to ``sigma_max`` uniformly in VP time,
as trained models have; the denoiser is evaluated exactly at the noise level the scheduler works with, so that none
loses by the rounding of its timesteps.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import diffusers
import numpy as np
import torch
from torch import Tensor

Denoise = Callable[[Tensor, Tensor, Any], Tensor]

BUILT_IN = ("default", "karras", "exponential", "beta")
ENDS = ("zero", "sigma_min")
SIGMA_DATA = 0.5


@dataclass(frozen=True)
class Stock:
    """One scheduler class with one configuration."""

    kind: str
    options: dict[str, Any]
    label: str

    def run(self, denoise: Denoise, noise: Tensor, nfe: int, sigma_min: float, sigma_max: float) -> Tensor | None:
        """Return samples after exactly ``nfe`` evaluations, or ``None`` where the scheduler has no such budget."""
        for steps in range(1, nfe + 1):
            scheduler = self._make(sigma_min, sigma_max, steps)
            try:
                scheduler.set_timesteps(steps)
            except (ValueError, IndexError, ZeroDivisionError):
                continue
            if len(scheduler.timesteps) == nfe:
                return self._loop(scheduler, denoise, noise, sigma_max)
        return None

    def _make(self, sigma_min: float, sigma_max: float, steps: int) -> Any:
        options = dict(self.options)
        if self.kind.startswith("EDM"):
            options |= {"sigma_min": sigma_min, "sigma_max": sigma_max, "sigma_data": SIGMA_DATA}
        elif self.kind == "IPNDMScheduler":
            betas = np.sin(np.linspace(1, 0, steps + 1) * np.pi / 2) ** 2
            limit = sigma_max / np.sqrt(1 + sigma_max**2)
            options["trained_betas"] = np.minimum(betas, limit).tolist()
        else:
            options["trained_betas"] = trained_betas(sigma_min, sigma_max)
        return getattr(diffusers, self.kind)(**options)

    def _loop(self, scheduler: Any, denoise: Denoise, noise: Tensor, sigma_max: float) -> Tensor:
        first = float(self._sigma(scheduler, 0))
        spread = scheduler.init_noise_sigma
        explodes = float(spread) > 1.5  # samples are x0 + sigma z; otherwise they are scaled to unit variance
        x = noise * (first if explodes else 1.0)
        for call, timestep in enumerate(scheduler.timesteps):
            sigma = torch.as_tensor(self._sigma(scheduler, call), dtype=noise.dtype)
            if self.kind.startswith("EDM"):
                scheduler.scale_model_input(x, timestep)
                denoised = denoise(x, sigma, None)
                variance = sigma**2 + SIGMA_DATA**2
                output = (denoised - SIGMA_DATA**2 / variance * x) / (sigma * SIGMA_DATA * variance.rsqrt())
            else:
                seen = scheduler.scale_model_input(x, timestep)
                state = seen * (1 + sigma**2).sqrt()
                output = (state - denoise(state, sigma, None)) / sigma
            x = scheduler.step(output, timestep, x).prev_sample
        return x

    def _sigma(self, scheduler: Any, call: int) -> Tensor | float:
        if self.kind == "KDPM2DiscreteScheduler" and call % 2 == 1:
            return scheduler.sigmas_interpol[call]
        if self.kind == "IPNDMScheduler":
            return scheduler.betas[call] / scheduler.alphas[call]
        if self.kind in ("DDIMScheduler", "PNDMScheduler"):
            alpha = scheduler.alphas_cumprod[int(scheduler.timesteps[call])]
            return ((1 - alpha) / alpha).sqrt()
        return scheduler.sigmas[call]


def trained_betas(sigma_min: float, sigma_max: float, count: int = 1000) -> list[float]:
    """Return the betas of a model whose noise levels run uniformly in VP time from ``sigma_min`` to ``sigma_max``."""
    low, high, first = np.log1p(sigma_min**2), np.log1p(sigma_max**2), 1e-3
    slope = 2 * (low / first - high) / (first - 1)
    times = np.linspace(first, 1, count)
    kept = np.exp(-(slope * times**2 / 2 + (high - slope / 2) * times))
    return (1 - kept / np.concatenate([[1.0], kept[:-1]])).tolist()


def _flags(*schedules: str) -> dict[str, bool]:
    return {
        f"use_{schedule}_{'lambdas' if schedule == 'lu' else 'sigmas'}": True
        for schedule in schedules
        if schedule != "default"
    }


def stock() -> Iterator[Stock]:
    """Yield every entry."""
    for schedule, end, order in itertools.product((*BUILT_IN, "lu"), ENDS, (2, 3)):
        options = {**_flags(schedule), "final_sigmas_type": end, "solver_order": order}
        ended = "" if end == "zero" else ", to sigma_min"
        yield Stock("DPMSolverMultistepScheduler", options, f"DPM++ {order}M {schedule}{ended}")
        if schedule == "lu":
            continue
        yield Stock("UniPCMultistepScheduler", options, f"UniPC-{order} {schedule}{ended}")
        single = options | {"lower_order_final": True}
        yield Stock("DPMSolverSinglestepScheduler", single, f"DPM++ {order}S {schedule}{ended}")
    for schedule, order in itertools.product(BUILT_IN, (2, 3)):
        yield Stock("DEISMultistepScheduler", {**_flags(schedule), "solver_order": order}, f"DEIS-{order} {schedule}")
        sa = {**_flags(schedule), "predictor_order": order, "corrector_order": order, "tau_func": lambda t: 0.0}
        yield Stock("SASolverScheduler", sa, f"SA-{order} {schedule}, tau 0")
    for schedule, end in itertools.product(BUILT_IN, ENDS):
        ended = "" if end == "zero" else ", to sigma_min"
        yield Stock(
            "EulerDiscreteScheduler", {**_flags(schedule), "final_sigmas_type": end}, f"Euler {schedule}{ended}"
        )
    for schedule in BUILT_IN:
        yield Stock("HeunDiscreteScheduler", _flags(schedule), f"Heun {schedule}")
        yield Stock("KDPM2DiscreteScheduler", _flags(schedule), f"DPM2 {schedule}")
        yield Stock("LMSDiscreteScheduler", _flags(schedule), f"LMS {schedule}")
    for spacing in ("leading", "trailing", "linspace"):
        yield Stock("DDIMScheduler", {"clip_sample": False, "timestep_spacing": spacing}, f"DDIM {spacing}")
        yield Stock("PNDMScheduler", {"skip_prk_steps": True, "timestep_spacing": spacing}, f"PNDM {spacing}")
    for schedule, end in itertools.product(("karras", "exponential"), ENDS):
        ended = "" if end == "zero" else ", to sigma_min"
        options = {"sigma_schedule": schedule, "final_sigmas_type": end}
        yield Stock("EDMEulerScheduler", options, f"EDM Euler {schedule}{ended}")
        for order in (2, 3):
            label = f"EDM DPM++ {order}M {schedule}{ended}"
            yield Stock("EDMDPMSolverMultistepScheduler", options | {"solver_order": order}, label)
    yield Stock("IPNDMScheduler", {}, "iPNDM sine")
