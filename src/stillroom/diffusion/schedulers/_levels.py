"""From a scheduler's configuration to noise levels: of the training, and of a number of steps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from stillroom.diffusion.schedules import schedule
from stillroom.errors import InputError, unknown_name

__all__ = ["Floats", "exact_levels", "flow_times", "named_levels", "spaced_levels", "table_sigmas", "training_betas"]

Floats = NDArray[np.float64]

BETA_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2", "exp", "laplace", "sigmoid")
ALIASES = {
    "use_karras_sigmas": "polynomial",
    "use_exponential_sigmas": "logsnr",
    "use_lu_lambdas": "logsnr",
    "use_beta_sigmas": "beta",
}


def training_betas(config: Any) -> Floats:
    """Return the training noise schedule."""
    if config.trained_betas is not None:
        return np.asarray(config.trained_betas, dtype=np.float64)
    count, start, end = config.num_train_timesteps, config.beta_start, config.beta_end
    match config.beta_schedule:
        case "linear":
            betas = np.linspace(start, end, count)
        case "scaled_linear":
            betas = np.linspace(start**0.5, end**0.5, count) ** 2
        case "sigmoid":
            betas = (end - start) / (1 + np.exp(-np.linspace(-6, 6, count))) + start
        case "squaredcos_cap_v2" | "exp" | "laplace" as name:
            ends = np.arange(count + 1) / count
            values = np.array([_alpha_bar(name, float(t)) for t in ends])
            betas = np.minimum(1 - values[1:] / values[:-1], 0.999)
        case name:
            raise unknown_name("beta_schedule", str(name), BETA_SCHEDULES)
    return betas


def _alpha_bar(name: str, t: float) -> float:
    if name == "squaredcos_cap_v2":
        return math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2
    if name == "exp":
        return math.exp(-12.0 * t)
    snr = math.exp(-0.5 * math.copysign(1, 0.5 - t) * math.log(1 - 2 * abs(0.5 - t) + 1e-6))
    return math.sqrt(snr / (1 + snr))


def table_sigmas(betas: Floats, zero_snr: bool) -> tuple[Floats, Floats]:
    """Return the products of ``1 - beta`` and the noise levels of the training, rising.

    With ``zero_snr`` the table is stretched to end in pure noise (Lin et al., Common Diffusion Noise Schedules and
    Sample Steps are Flawed, WACV 2024, algorithm 1); as in diffusers its last product is 2^-24, so that sigma is
    finite.
    """
    products: Floats = np.cumprod(1 - betas, dtype=np.float64)
    if zero_snr:
        roots = products**0.5
        products = ((roots - roots[-1]) * roots[0] / (roots[0] - roots[-1])) ** 2
        products[-1] = 2.0**-24
    sigmas: Floats = np.sqrt((1 - products) / products)
    return products, sigmas


def spaced_levels(table: Floats, steps: int, config: Any, inner: bool) -> tuple[float, ...]:
    """Return the levels of ``timestep_spacing``: the same timesteps as the scheduler of diffusers has.

    Args:
        table: Noise levels of the training.
        steps: How many.
        config: Of the scheduler.
        inner: Leave out the lowest timestep (as DPM-Solver++, DEIS and UniPC do there).

    Raises:
        InputError: There are more steps than training timesteps, or the spacing is unknown.
    """
    # The first timestep whose log-SNR is high enough; of a cosine schedule, noise levels grow without bound.
    count = int(np.searchsorted(np.log(table), -config.lambda_min_clipped, side="right"))
    if not 1 <= steps <= count:
        raise InputError(f"num_inference_steps is {steps}; it must be 1 to {count}, the number of training timesteps")
    # A schedule that ends at the lowest level of the training has no room for an evaluation there.
    points = steps + 1 if inner or config.final_sigmas_type == "sigma_min" else steps
    match config.timestep_spacing:
        case "linspace":
            times = np.linspace(0, count - 1, points)
            times = times.round() if inner else times
        case "leading":
            times = np.arange(points) * (count // points) + config.steps_offset
        case "trailing":
            times = np.round(np.arange(count, 0, -len(table) / steps))[:steps][::-1] - 1
        case name:
            raise unknown_name("timestep_spacing", str(name), ("linspace", "leading", "trailing"))
    times = np.minimum(times[::-1][:steps], count - 1)
    last = 0 if config.final_sigmas_type == "sigma_min" else -1
    if len(times) < steps or not (np.diff([*times, last]) < 0).all():  # rounding made two of them one, or one the end
        times = np.linspace(min(max(times[0], steps - 1), count - 1), last, steps + 1)[:-1]
    times = times.astype(np.float32)  # as the scheduler shows them, so that they lead back to the same levels
    levels = tuple(np.exp(np.interp(times, np.arange(len(table)), np.log(table))).tolist())
    return (*levels, 0.0 if last < 0 else float(table[0]))


def named_levels(config: Any, steps: int, low: float, high: float, table: Floats) -> tuple[float, ...] | None:
    """Return the levels of a named schedule with ``steps`` steps, or ``None`` if the configuration names none.

    Models with ``sigma_data`` have no table of timesteps; theirs is ``polynomial`` by default.

    Raises:
        InputError: It names two, or an unknown one.
    """
    names = {name for option, name in ALIASES.items() if getattr(config, option)}
    names |= {config.schedule} if config.schedule is not None else set()
    if config.sigma_data is not None:
        names = names or {"polynomial"}
    if not names:
        return None
    if len(names) > 1:
        raise InputError(f"the scheduler's configuration names several schedules: {', '.join(sorted(names))}")
    name = names.pop()
    zero = config.final_sigmas_type == "zero"
    if steps == 1 and zero:
        return high, 0.0
    options: dict[str, Any] = dict(config.schedule_options or {})
    if name == "discrete":
        options.setdefault("levels", table)
    levels = schedule(name, steps + 1, low, high, **options)
    if zero and levels[-1] != 0:
        levels = torch.cat([schedule(name, steps, low, high, **options), levels.new_zeros(1)])
    return tuple(levels.tolist())


def flow_times(config: Any, steps: int, mu: float | None) -> tuple[float, ...]:
    """Return the times of a flow, falling from 1, shifted as configured.

    Raises:
        InputError: Dynamic shifting without ``mu``, or two static shifts.
    """
    times = np.linspace(1, 0, steps + 1)[:-1]
    if config.use_dynamic_shifting:
        if mu is None:
            raise InputError("use_dynamic_shifting needs mu, which the pipeline computes from the size of the image")
        factor = math.exp(mu) if config.time_shift_type == "exponential" else mu
        times = factor / (factor + (1 / times - 1))
    else:
        if 1 not in (config.shift, config.flow_shift):
            raise InputError("shift and flow_shift are the same option; set one of them")
        shift = config.shift * config.flow_shift
        times = shift * times / (1 + (shift - 1) * times)
    if config.shift_terminal and steps > 1:
        times = 1 - (1 - times) * (1 - config.shift_terminal) / (1 - times[-1])
    end = 0.0 if config.final_sigmas_type == "zero" else min(1 / config.num_train_timesteps, float(times[-1]) / 2)
    return (*times.tolist(), end)


def exact_levels(sigmas: Sequence[float], steps: int | None, append_zero: bool) -> Sequence[float]:
    """Return an explicit schedule; where the convention leaves the final 0 away, with it.

    Raises:
        InputError: ``num_inference_steps`` was given too and differs.
    """
    levels = [float(sigma) for sigma in sigmas]
    if levels and levels[-1] != 0 and (append_zero or steps == len(levels)):
        levels.append(0.0)
    if steps is not None and steps != len(levels) - 1:
        raise InputError(
            f"num_inference_steps is {steps}, but the sigmas have {len(levels) - 1} steps; pass one of the two"
        )
    return levels
