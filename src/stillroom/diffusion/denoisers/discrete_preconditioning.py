"""Preconditioning of networks that know a table of noise levels: iDDPM, discrete diffusion, latent diffusion."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from stillroom.diffusion.denoisers.preconditioning import Scalings, epsilon_scalings, velocity_scalings
from stillroom.errors import InputError

__all__ = ["IDDPM", "LDM", "Discrete", "Prediction"]


class _Table:
    """Numbers in float64, brought to the device and type of what they are used with, once for each."""

    def __init__(self, values: Tensor) -> None:
        self.values = values.detach().to("cpu", torch.float64)
        self._copies: dict[tuple[torch.device, torch.dtype], Tensor] = {}

    def like(self, other: Tensor) -> Tensor:
        key = (other.device, other.dtype)
        if key not in self._copies:
            self._copies[key] = self.values.to(*key)
        return self._copies[key]


@dataclass(frozen=True, kw_only=True)
class IDDPM:
    """Networks of improved DDPM: epsilon, told the number of the nearest noise level of a table.

    ``u_M = 0``, ``u_{j-1} = sqrt((u_j^2 + 1) / max(abar_{j-1} / abar_j, C_1) - 1)``,
    ``abar_j = sin^2(pi j / (2 M (C_2 + 1)))``; the sample is scaled by the given noise level, not by the nearest.

    Source: Nichol, Dhariwal, Improved Denoising Diffusion Probabilistic Models, ICML 2021; EDM, table 1.
    """

    C_1: float = 0.001
    C_2: float = 0.008
    M: int = 1000
    _rising: _Table = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        abar = [math.sin(math.pi / 2 * j / (self.M * (self.C_2 + 1))) ** 2 for j in range(self.M + 1)]
        rising = [0.0]
        for j in range(self.M, 0, -1):
            rising.append(math.sqrt((rising[-1] ** 2 + 1) / max(abar[j - 1] / abar[j], self.C_1) - 1))
        object.__setattr__(self, "_rising", _Table(torch.tensor(rising, dtype=torch.float64)))

    @property
    def levels(self) -> Tensor:
        """The table u_0..u_M, falling to 0, [M + 1], float64."""
        return self._rising.values.flip(0)

    @property
    def sigma_min(self) -> float:
        """The smallest level above 0."""
        return float(self._rising.values[1])

    @property
    def sigma_max(self) -> float:
        """The largest level."""
        return float(self._rising.values[-1])

    def index(self, sigma: Tensor) -> Tensor:
        """Return the index of the nearest entry of ``levels``, int64."""
        return self.M - _nearest(self._rising.like(sigma), sigma)

    def scalings(self, sigma: Tensor, /) -> Scalings:
        """Return the numbers at the noise levels."""
        return epsilon_scalings(sigma, (self.M - 1 - self.index(sigma)).to(sigma.dtype))


Prediction = Literal["epsilon", "v_prediction", "sample"]


@dataclass(frozen=True)
class Discrete:
    """Networks of discrete-time diffusion, told the number of the noise level in their table, also between two.

    With ``sigma_k = sqrt((1 - abar_k) / abar_k)``, numbers in between are linear in ln sigma. The network predicts
    epsilon, v (Salimans, Ho, Progressive Distillation, ICLR 2022) or the clean sample.

    Args:
        alphas_cumprod: abar_k, [M], falling, in 0..1.
        prediction: What the network predicts.
        quantize: Only tell the network whole numbers, the nearest in ln sigma.

    Raises:
        InputError: The table is none, or there is no such prediction.
    """

    alphas_cumprod: Tensor = field(repr=False, compare=False)
    prediction: Prediction = "epsilon"
    quantize: bool = field(default=False, kw_only=True)
    _logs: _Table = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.prediction not in ("epsilon", "v_prediction", "sample"):
            raise InputError(f"prediction must be epsilon, v_prediction or sample, got {self.prediction!r}")
        abar = _checked(self.alphas_cumprod)
        object.__setattr__(self, "_logs", _Table(((1 - abar) / abar).log() / 2))

    @property
    def sigmas(self) -> tuple[float, ...]:
        """The table's noise levels, rising."""
        return tuple(self._logs.values.exp().tolist())

    @property
    def sigma_min(self) -> float:
        """The smallest noise level."""
        return self.sigmas[0]

    @property
    def sigma_max(self) -> float:
        """The largest one."""
        return self.sigmas[-1]

    def index(self, sigma: Tensor) -> Tensor:
        """Return the fractional number of noise levels in the table; beyond its ends, the end's number."""
        logs, log = self._logs.like(sigma), sigma.log()
        if self.quantize:
            return _nearest(logs, log).to(sigma.dtype)
        return _line(log, logs, torch.arange(len(logs), dtype=log.dtype, device=log.device)).clamp(0, len(logs) - 1)

    def scalings(self, sigma: Tensor, /) -> Scalings:
        """Return the numbers at the noise levels."""
        index = self.index(sigma)
        if self.prediction == "epsilon":
            return epsilon_scalings(sigma, index)
        if self.prediction == "v_prediction":
            return velocity_scalings(sigma, index)
        return Scalings(torch.zeros_like(sigma), torch.ones_like(sigma), (sigma**2 + 1).rsqrt(), index)


@dataclass(frozen=True)
class LDM:
    """Networks of latent diffusion, told ``M t - 1`` with the piecewise-linear time of their table.

    Level k of M is time (k + 1) / M; between the levels, and beyond, ``ln alpha = ln(abar) / 2`` is linear in time.

    Source: Lu et al., DPM-Solver, NeurIPS 2022, appendix (discrete-time models); Rombach et al., High-Resolution Image
    Synthesis with Latent Diffusion Models, CVPR 2022.

    Args:
        alphas_cumprod: abar_k, [M], falling, in 0..1.
        epsilon_t: Time of the smallest noise level.

    Raises:
        InputError: The table is none.
    """

    alphas_cumprod: Tensor = field(repr=False, compare=False)
    epsilon_t: float = field(default=1e-3, kw_only=True)
    _logs: _Table = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_logs", _Table(-_checked(self.alphas_cumprod).log()))  # -2 ln alpha, rising

    @property
    def sigma_min(self) -> float:
        """The noise level at time ``epsilon_t``."""
        return float(self.sigma(torch.tensor(self.epsilon_t, dtype=torch.float64)))

    @property
    def sigma_max(self) -> float:
        """The noise level at time 1."""
        return float(self.sigma(torch.ones((), dtype=torch.float64)))

    def sigma(self, time: Tensor) -> Tensor:
        """Return ``sqrt(1 - alpha^2) / alpha`` at a time."""
        logs = self._logs.like(time)
        return _line(time, _times(logs), logs).expm1().sqrt()

    def time(self, sigma: Tensor) -> Tensor:
        """Return the time of a noise level, the inverse of :meth:`sigma`."""
        logs = self._logs.like(sigma)
        return _line((sigma**2).log1p(), logs, _times(logs))

    def scalings(self, sigma: Tensor, /) -> Scalings:
        """Return the numbers at the noise levels."""
        return epsilon_scalings(sigma, len(self._logs.values) * self.time(sigma) - 1)


def _checked(alphas_cumprod: Tensor | Sequence[float]) -> Tensor:
    abar = torch.as_tensor(alphas_cumprod).detach().to("cpu", torch.float64)
    if abar.ndim != 1 or len(abar) < 2:
        raise InputError(f"alphas_cumprod must be a list of at least two numbers, got shape {list(abar.shape)}")
    if not bool(((abar > 0) & (abar < 1)).all()) or not bool((abar.diff() < 0).all()):
        raise InputError("alphas_cumprod must lie between 0 and 1 and fall; does its last entry reach 0?")
    return abar


def _times(table: Tensor) -> Tensor:
    return torch.arange(1, len(table) + 1, dtype=table.dtype, device=table.device) / len(table)


def _line(at: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Interpolate linearly between points of rising x, with the outer segments extended."""
    k = (torch.searchsorted(x, at.detach().contiguous()) - 1).clamp(0, len(x) - 2)
    return y[k] + (at - x[k]) * ((y[k + 1] - y[k]) / (x[k + 1] - x[k]))


def _nearest(rising: Tensor, values: Tensor) -> Tensor:
    return torch.searchsorted((rising[1:] + rising[:-1]) / 2, values.detach().contiguous())
