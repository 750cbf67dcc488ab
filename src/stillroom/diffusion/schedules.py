"""Noise schedules: falling noise levels, computed in float64 on the host.

Every schedule of ``points`` noise levels makes ``points - 1`` steps; where it ends at 0, that 0 is one of the points.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from inspect import signature

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stillroom.errors import InputError, unknown_name

__all__ = [
    "SCHEDULES",
    "align_your_steps",
    "beta",
    "discrete",
    "exponential_zero",
    "flow",
    "karras_zero",
    "logsnr",
    "polyexponential_zero",
    "polynomial",
    "schedule",
    "time_uniform",
    "vp_betas",
    "vp_sigma",
    "vp_time",
    "vp_zero",
]

VP_START = 1e-3  # the time at which variance-preserving diffusion starts

# Sabour, Fidler, Kreis, Align Your Steps, ICML 2024: 10 steps.
ALIGN_YOUR_STEPS = {
    "sd15": (14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152),
    "sdxl": (14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113),
    "svd": (700.0, 54.5, 15.886, 7.977, 4.248, 1.789, 0.981, 0.403, 0.173, 0.034),
}


def polynomial(points: int, sigma_min: float, sigma_max: float, *, rho: float = 7.0) -> Tensor:
    """Return ``(smax^(1/rho) + u (smin^(1/rho) - smax^(1/rho)))^rho`` for u from 0 to 1.

    Source: Karras, Aittala, Aila, Laine, Elucidating the Design Space of Diffusion-Based Generative Models, NeurIPS
    2022, eq. 5.

    Raises:
        InputError: A value is out of its range.

    Example:
        >>> polynomial(3, 1.0, 9.0, rho=2.0)
        tensor([9., 4., 1.], dtype=torch.float64)
    """
    _check(points, sigma_min, sigma_max, zero=True)
    _check_positive("rho", rho)
    high, low = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    return _falling((high + _ramp(points) * (low - high)) ** rho, ends=(sigma_max, sigma_min))


def logsnr(points: int, sigma_min: float, sigma_max: float) -> Tensor:
    """Return noise levels evenly spaced in ln sigma.

    Source: Lu et al., DPM-Solver, NeurIPS 2022, section 3.4.

    Raises:
        InputError: A value is out of its range.

    Example:
        >>> logsnr(3, 1.0, 4.0)
        tensor([4., 2., 1.], dtype=torch.float64)
    """
    _check(points, sigma_min, sigma_max)
    high, low = math.log(sigma_max), math.log(sigma_min)
    return _falling(np.exp(high + _ramp(points) * (low - high)), ends=(sigma_max, sigma_min))


def time_uniform(points: int, sigma_min: float, sigma_max: float, *, rho: float = 1.0) -> Tensor:
    """Return noise levels whose variance-preserving times are spaced evenly (rho 1) or quadratically (rho 2).

    ``t = (1 + u (eps^(1/rho) - 1))^rho``; the linear beta(t) is the one that runs from sigma_min to sigma_max.

    Source: Song et al., Score-Based Generative Modeling through Stochastic Differential Equations, ICLR 2021, eq. 33;
    Zhang, Chen, DEIS, ICLR 2023 (rho 2).

    Raises:
        InputError: A value is out of its range, or no linear beta(t) spans it.

    Example:
        >>> [round(sigma, 3) for sigma in time_uniform(3, 0.002, 80.0).tolist()]
        [80.0, 2.824, 0.002]
    """
    _check(points, sigma_min, sigma_max)
    _check_positive("rho", rho)
    beta_d, beta_min = vp_betas(sigma_min, sigma_max)
    times = (1 + _ramp(points) * (VP_START ** (1 / rho) - 1)) ** rho
    with np.errstate(invalid="ignore"):
        values = vp_sigma(times, beta_d, beta_min)
    if not (np.diff(values) < 0).all():
        raise InputError(
            f"time_uniform cannot span {sigma_min:g} to {sigma_max:g}: sigma_min is too large for it; use polynomial"
        )
    return _falling(values, ends=(sigma_max, sigma_min))


def discrete(points: int, sigma_min: float, sigma_max: float, *, levels: Sequence[float], rho: float = 1.0) -> Tensor:
    """Return noise levels evenly spaced (rho 1) in the time of a model with a table of discrete levels.

    Level k of M is time (k + 1) / M; between the levels, and beyond, ``ln alpha = -ln(1 + sigma^2) / 2`` is piecewise
    linear in time.

    Source: Lu et al., DPM-Solver, NeurIPS 2022, appendix (discrete-time models).

    Args:
        points: Number of noise levels.
        sigma_min: The last.
        sigma_max: The first.
        levels: The model's noise levels, rising, such as ``DenoisingModel.sigmas``.
        rho: Exponent of the spacing in time.

    Raises:
        InputError: A value is out of its range.

    Example:
        >>> [round(sigma, 6) for sigma in discrete(3, 1.0, 3.0, levels=[1.0, 2.0, 3.0]).tolist()]
        [3.0, 2.0, 1.0]
    """
    _check(points, sigma_min, sigma_max)
    _check_positive("rho", rho)
    table = np.asarray(levels, dtype=np.float64)
    if table.ndim != 1 or len(table) < 2 or not (table > 0).all() or not (np.diff(table) > 0).all():
        raise InputError("levels, the model's discrete noise levels, must be at least two, positive and rising")
    exponent = np.log1p(table**2)  # -2 ln alpha
    times = (np.arange(len(table)) + 1) / len(table)
    ends = np.log1p(np.array([sigma_max, sigma_min]) ** 2)
    first, last = _extended_line(ends, exponent, times)
    if last <= 0:
        raise InputError(
            f"sigma_min {sigma_min:g} lies before time 0 of the model's {len(table)} noise levels; raise it"
        )
    at = (first ** (1 / rho) + _ramp(points) * (last ** (1 / rho) - first ** (1 / rho))) ** rho
    exponent = np.maximum(_extended_line(at, times, exponent), 0.0)  # below 0 by rounding, at the end
    return _falling(np.sqrt(np.expm1(exponent)), ends=(sigma_max, sigma_min))


def karras_zero(points: int, sigma_min: float, sigma_max: float, *, rho: float = 7.0) -> Tensor:
    """Return :func:`polynomial` on all points but the last, which is 0.

    Example:
        >>> karras_zero(3, 1.0, 4.0)
        tensor([4., 1., 0.], dtype=torch.float64)
    """
    _check(points - 1, sigma_min, sigma_max)
    return _with_zero(polynomial(points - 1, sigma_min, sigma_max, rho=rho))


def exponential_zero(points: int, sigma_min: float, sigma_max: float) -> Tensor:
    """Return :func:`logsnr` on all points but the last, which is 0.

    Example:
        >>> exponential_zero(4, 1.0, 4.0)
        tensor([4., 2., 1., 0.], dtype=torch.float64)
    """
    return _with_zero(logsnr(points - 1, sigma_min, sigma_max))


def polyexponential_zero(points: int, sigma_min: float, sigma_max: float, *, rho: float = 1.0) -> Tensor:
    """Return ``exp(v^rho (ln smax - ln smin) + ln smin)`` for v from 1 to 0, then 0.

    Example:
        >>> polyexponential_zero(4, 1.0, 16.0, rho=2.0)
        tensor([16.,  2.,  1.,  0.], dtype=torch.float64)
    """
    _check(points - 1, sigma_min, sigma_max)
    _check_positive("rho", rho)
    low, span = math.log(sigma_min), math.log(sigma_max / sigma_min)
    values = np.exp((1 - _ramp(points - 1)) ** rho * span + low)
    return _with_zero(_falling(values, ends=(sigma_max, sigma_min)))


def vp_zero(points: int, *, beta_d: float = 19.9, beta_min: float = 0.1, start: float = VP_START) -> Tensor:
    """Return the levels of variance-preserving diffusion at even times from 1 to ``start``, then 0.

    The betas fix its range of noise levels, so it takes none.

    Source: Song et al., Score-Based Generative Modeling through Stochastic Differential Equations, ICLR 2021.

    Raises:
        InputError: A value is out of its range.

    Example:
        >>> [round(sigma, 2) for sigma in vp_zero(3).tolist()]
        [152.17, 0.01, 0.0]
    """
    _check(points - 1, start, 1.0)
    _check_positive("beta_d", beta_d)
    _check_positive("beta_min", beta_min)
    times = 1 + _ramp(points - 1) * (start - 1)
    return _with_zero(_falling(vp_sigma(times, beta_d, beta_min)))


def beta(points: int, sigma_min: float, sigma_max: float, *, alpha: float = 0.6, beta: float = 0.6) -> Tensor:
    """Return quantiles of a beta distribution over the range: dense at both ends.

    Source: Lee et al., Beta Sampling is All You Need: Efficient Image Generation Strategy for Diffusion Models using
    Stepwise Spectral Analysis, 2024.

    Raises:
        InputError: A value is out of its range.

    Example:
        >>> [round(sigma, 6) for sigma in beta(3, 0.0, 2.0).tolist()]
        [2.0, 1.0, 0.0]
    """
    _check(points, sigma_min, sigma_max, zero=True)
    _check_positive("alpha", alpha)
    _check_positive("beta", beta)
    share = np.array([_beta_quantile(float(1 - u), alpha, beta) for u in _ramp(points)])
    return _falling(sigma_min + (sigma_max - sigma_min) * share, ends=(sigma_max, sigma_min))


def flow(points: int, sigma_min: float, sigma_max: float, *, shift: float = 1.0) -> Tensor:
    """Return noise levels evenly spaced in the time ``t = sigma / (1 + sigma)`` of flow matching, shifted.

    The shift ``t' = k t / (1 + (k - 1) t)`` multiplies sigma by k; the ends stay where they are.

    Source: Esser et al., Scaling Rectified Flow Transformers for High-Resolution Image Synthesis, ICML 2024, eq. 23.

    Raises:
        InputError: A value is out of its range.

    Example:
        >>> flow(3, 0.25, 4.0)
        tensor([4.0000, 1.0000, 0.2500], dtype=torch.float64)
    """
    _check(points, sigma_min, sigma_max)
    _check_positive("shift", shift)
    high, low = (sigma / shift / (1 + sigma / shift) for sigma in (sigma_max, sigma_min))
    times = high + _ramp(points) * (low - high)
    return _falling(shift * times / (1 - times), ends=(sigma_max, sigma_min))


def align_your_steps(points: int, *, model: str = "sd15") -> Tensor:
    """Return the optimised levels of a family of models, ending at 0; 11 points as published, others interpolated.

    The table fixes its range of noise levels, so it takes none.

    Source: Sabour, Fidler, Kreis, Align Your Steps: Optimizing Sampling Schedules in Diffusion Models, ICML 2024.

    Args:
        points: Number of noise levels; the logarithm of the published ones is interpolated over their index.
        model: ``sd15``, ``sdxl`` or ``svd``.

    Raises:
        InputError: There is no such table, or too few points.

    Example:
        >>> align_your_steps(11, model="sdxl")[:3]
        tensor([14.6150,  6.3150,  3.7710], dtype=torch.float64)
    """
    if model not in ALIGN_YOUR_STEPS:
        raise unknown_name("Align-Your-Steps table", model, ALIGN_YOUR_STEPS)
    table = np.array(ALIGN_YOUR_STEPS[model])
    _check(points - 1, table[-1], table[0])
    values = np.exp(np.interp(_ramp(points - 1) * (len(table) - 1), np.arange(len(table)), np.log(table)))
    return _with_zero(_falling(values, ends=(table[0], table[-1])))


SCHEDULES: dict[str, Callable[..., Tensor]] = {
    "polynomial": polynomial,
    "logsnr": logsnr,
    "time_uniform": time_uniform,
    "discrete": discrete,
    "karras_zero": karras_zero,
    "exponential_zero": exponential_zero,
    "polyexponential_zero": polyexponential_zero,
    "vp_zero": vp_zero,
    "beta": beta,
    "flow": flow,
    "align_your_steps": align_your_steps,
}


def schedule(name: str, points: int, sigma_min: float, sigma_max: float, **options: object) -> Tensor:
    """Return a schedule by its key in ``SCHEDULES``; those with a range of their own leave the given one aside.

    Raises:
        InputError: There is no such schedule, it knows no such option, or a value is out of its range.

    Example:
        >>> schedule("polynomial", 3, 1.0, 9.0, rho=2.0)
        tensor([9., 4., 1.], dtype=torch.float64)
    """
    if name not in SCHEDULES:
        raise unknown_name("noise schedule", name, SCHEDULES)
    parameters = signature(SCHEDULES[name]).parameters
    known = [key for key, parameter in parameters.items() if parameter.kind is parameter.KEYWORD_ONLY]
    for option in options:
        if option not in known:
            raise InputError(f"noise schedule {name} has no option {option!r}; it knows {', '.join(known) or 'none'}")
    for option in known:
        if parameters[option].default is parameters[option].empty and option not in options:
            raise InputError(f"noise schedule {name} needs the option {option}")
    if "sigma_min" in parameters:
        return SCHEDULES[name](points, sigma_min, sigma_max, **options)
    return SCHEDULES[name](points, **options)


def vp_betas(sigma_min: float, sigma_max: float) -> tuple[float, float]:
    """Return beta_d and beta_min of the linear beta(t) with ``sigma(1e-3) = sigma_min`` and ``sigma(1) = sigma_max``.

    Example:
        >>> beta_d, beta_min = vp_betas(0.002, 80.0)
        >>> round(beta_d, 3), round(beta_min, 4)
        (17.538, -0.0048)
    """
    low, high = math.log1p(sigma_min**2), math.log1p(sigma_max**2)
    beta_d = 2 * (low / VP_START - high) / (VP_START - 1)
    return beta_d, high - beta_d / 2


def vp_sigma(t: NDArray[np.float64], beta_d: float, beta_min: float) -> NDArray[np.float64]:
    """Return the noise levels of variance-preserving times, ``sqrt(exp(beta_d t^2 / 2 + beta_min t) - 1)``."""
    return np.sqrt(np.expm1(beta_d * t**2 / 2 + beta_min * t))


def vp_time(sigma: NDArray[np.float64], beta_d: float, beta_min: float) -> NDArray[np.float64]:
    """Return the variance-preserving times of noise levels, the inverse of :func:`vp_sigma`.

    Example:
        >>> vp_sigma(vp_time(np.array([3.0]), 19.9, 0.1), 19.9, 0.1).round(9)
        array([3.])
    """
    return (np.sqrt(beta_min**2 + 2 * beta_d * np.log1p(sigma**2)) - beta_min) / beta_d


def _check(points: int, sigma_min: float, sigma_max: float, *, zero: bool = False) -> None:
    if points < 2:
        raise InputError("a schedule needs at least two points (besides a final 0); ask for more")
    if not (math.isfinite(sigma_min) and math.isfinite(sigma_max)) or sigma_min < 0 or (sigma_min == 0 and not zero):
        raise InputError(f"noise levels run from {sigma_max:g} to {sigma_min:g}; both must be positive and finite")
    if sigma_min >= sigma_max:
        raise InputError(f"sigma_min ({sigma_min:g}) must be below sigma_max ({sigma_max:g})")


def _check_positive(option: str, value: float) -> None:
    if not (value > 0 and math.isfinite(value)):
        raise InputError(f"{option} of the schedule is {value!r}; it must be positive")


def _ramp(points: int) -> NDArray[np.float64]:
    return np.linspace(0.0, 1.0, points)


def _falling(values: NDArray[np.float64], ends: tuple[float, float] | None = None) -> Tensor:
    if ends is not None:  # the formulas hit them up to rounding
        values[0], values[-1] = ends
    if not np.isfinite(values).all() or (np.diff(values) >= 0).any():
        raise InputError(f"{len(values)} points do not fall strictly over this range; use fewer, or another schedule")
    return torch.from_numpy(values)


def _with_zero(values: Tensor) -> Tensor:
    return torch.cat([values, values.new_zeros(1)])


def _extended_line(at: NDArray[np.float64], x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    """Interpolate linearly between points of rising x, with the outer segments extended."""
    k = np.clip(np.searchsorted(x, at) - 1, 0, len(x) - 2)
    return y[k] + (at - x[k]) * (y[k + 1] - y[k]) / (x[k + 1] - x[k])


def _beta_quantile(probability: float, a: float, b: float) -> float:
    """Invert the beta distribution by bisection; its integral is a hypergeometric series, fast up to 1/2."""
    if probability in (0.0, 1.0):
        return probability
    scale = math.exp(math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b))
    n = np.arange(64)
    series = np.cumprod(np.concatenate([[1.0], (n[:-1] + 1 - b) / (n[:-1] + 1)])) / (a + n)
    middle = scale * 0.5**a * float(series @ 0.5**n)
    if probability > middle:
        return 1 - _beta_quantile(1 - probability, b, a)
    low, high = 0.0, 0.5
    for _ in range(100):
        x = (low + high) / 2
        low, high = (low, x) if scale * x**a * float(series @ x**n) > probability else (x, high)
    return (low + high) / 2
