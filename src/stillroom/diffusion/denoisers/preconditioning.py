"""From the output of a network to denoised samples: ``D(x, s) = c_skip x + c_out F(c_in x, c_noise)``.

Every preconditioning is a small frozen object that knows these four numbers as functions of the noise level s, and the
noise levels it was trained on; those that know a table of levels are in ``discrete_preconditioning``. The formulas of
EDM, VP, VE and iDDPM are those of Karras, Aittala, Aila, Laine, Elucidating the Design Space of Diffusion-Based
Generative Models, NeurIPS 2022, table 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from stillroom.diffusion.denoiser import per_sample
from stillroom.errors import InputError

__all__ = [
    "CM",
    "EDM",
    "VE",
    "VP",
    "Flow",
    "Preconditioned",
    "Preconditioning",
    "Scalings",
    "VContinuous",
    "epsilon_scalings",
    "network_input",
    "velocity_scalings",
]

Network = Callable[[Tensor, Tensor, Any], Tensor]


class Scalings(NamedTuple):
    """The numbers of ``c_skip x + c_out F(c_in x, c_noise)``, each of the shape of the noise levels."""

    c_skip: Tensor
    c_out: Tensor
    c_in: Tensor
    c_noise: Tensor


class Preconditioning(Protocol):
    """How a network sees samples and noise levels, and what its output means."""

    @property
    def sigma_min(self) -> float:
        """The smallest noise level the network was trained on."""

    @property
    def sigma_max(self) -> float:
        """The largest one."""

    def scalings(self, sigma: Tensor, /) -> Scalings:
        """Return the numbers at the noise levels, of any shape, of their type."""


class Preconditioned(nn.Module):
    """A network with its preconditioning: a denoiser.

    Args:
        network: Called with ``(c_in x, c_noise [B], condition)``; returns [B, C, ...]. Channels beyond the sample's
            (learned variances) are left out.
        preconditioning: What the network was trained with.

    Raises:
        InputError: When called: the output's shape is not that of the samples.

    Example:
        >>> denoiser = Preconditioned(lambda x, noise, condition: 0 * x, EDM(sigma_data=0.5))
        >>> denoiser(torch.ones(1, 1, 2, 2), torch.tensor(0.5)).flatten()
        tensor([0.5000, 0.5000, 0.5000, 0.5000])
    """

    def __init__(self, network: Network, preconditioning: Preconditioning) -> None:
        super().__init__()
        self.network, self.preconditioning = network, preconditioning

    @property
    def sigma_min(self) -> float:
        """The smallest noise level the network was trained on."""
        return self.preconditioning.sigma_min

    @property
    def sigma_max(self) -> float:
        """The largest one."""
        return self.preconditioning.sigma_max

    def forward(self, x: Tensor, sigma: Tensor, condition: Any = None, /) -> Tensor:
        """Return the denoised samples; see :class:`~stillroom.diffusion.denoiser.Denoiser`."""
        scalings = self.preconditioning.scalings(_levels(x, sigma))
        c_skip, c_out, c_in = (per_sample(value, x) for value in scalings[:3])
        output = self.network(c_in * x, scalings.c_noise.expand(len(x)), condition).to(x.dtype)
        output = output[:, : x.shape[1]]
        if output.shape != x.shape:
            raise InputError(f"the network answered samples {_shape(x)} with {_shape(output)}; it must keep the shape")
        return torch.addcmul(c_skip * x, c_out, output)


def network_input(preconditioning: Preconditioning, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """Return what the network, or a classifier of noisy samples trained beside it, sees: ``c_in x`` and ``c_noise``.

    Shapes:
        x: [B, ...].
        sigma: [], [1], [B] or [B, 1, ..., 1].
        Returns [B, ...] and [B].
    """
    scalings = preconditioning.scalings(_levels(x, sigma))
    return per_sample(scalings.c_in, x) * x, scalings.c_noise.expand(len(x))


@dataclass(frozen=True, kw_only=True)
class EDM:
    """The preconditioning of EDM: unit variance everywhere, ``c_noise = ln(s) / 4``."""

    sigma_data: float = 0.5
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    noise_scale: float = 0.25

    def scalings(self, sigma: Tensor, /) -> Scalings:
        """Return the numbers at the noise levels."""
        variance = sigma**2 + self.sigma_data**2
        return Scalings(
            self.sigma_data**2 / variance,
            sigma * self.sigma_data * variance.rsqrt(),
            variance.rsqrt(),
            self.noise_scale * sigma.log(),
        )


@dataclass(frozen=True, kw_only=True)
class CM(EDM):
    """EDM's preconditioning as in the networks published with consistency models: ``c_noise = 250 ln(s)``.

    Source: Song, Dhariwal, Chen, Sutskever, Consistency Models, ICML 2023, code.
    """

    noise_scale: float = 250.0


@dataclass(frozen=True, kw_only=True)
class VP:
    """Networks of variance-preserving diffusion with linear beta(t): epsilon of ``x / sqrt(s^2 + 1)`` at (M - 1) t.

    Source: Song et al., Score-Based Generative Modeling through Stochastic Differential Equations, ICLR 2021, eq. 33.
    With ``epsilon_t=1e-3``, and :class:`~stillroom.diffusion.denoisers.guidance.ClassifierGuidance` around it, also
    the networks of ADM (Dhariwal, Nichol, Diffusion Models Beat GANs, NeurIPS 2021).
    """

    beta_d: float = 19.9
    beta_min: float = 0.1
    M: int = 1000
    epsilon_t: float = 1e-5

    @property
    def sigma_min(self) -> float:
        """The noise level at time ``epsilon_t``."""
        return float(self.sigma(torch.tensor(self.epsilon_t, dtype=torch.float64)))

    @property
    def sigma_max(self) -> float:
        """The noise level at time 1."""
        return float(self.sigma(torch.ones((), dtype=torch.float64)))

    def sigma(self, time: Tensor) -> Tensor:
        """Return ``sqrt(exp(beta_d t^2 / 2 + beta_min t) - 1)``."""
        return (self.beta_d * time**2 / 2 + self.beta_min * time).expm1().sqrt()

    def time(self, sigma: Tensor) -> Tensor:
        """Return the time of a noise level, the inverse of :meth:`sigma`."""
        exponent = (sigma**2).log1p()
        # (sqrt(beta_min^2 + 2 beta_d e) - beta_min) / beta_d without the difference that cancels for small s
        return 2 * exponent / ((self.beta_min**2 + 2 * self.beta_d * exponent).sqrt() + self.beta_min)

    def scalings(self, sigma: Tensor, /) -> Scalings:
        """Return the numbers at the noise levels."""
        return epsilon_scalings(sigma, (self.M - 1) * self.time(sigma))


@dataclass(frozen=True, kw_only=True)
class VE:
    """Networks of variance-exploding diffusion: scaled score of x at ``ln(s / 2)``.

    Source: Song et al., Score-Based Generative Modeling through Stochastic Differential Equations, ICLR 2021.
    """

    sigma_min: float = 0.02
    sigma_max: float = 100.0

    def scalings(self, sigma: Tensor, /) -> Scalings:
        """Return the numbers at the noise levels."""
        one = torch.ones_like(sigma)
        return Scalings(one, sigma, one, (sigma / 2).log())


@dataclass(frozen=True, kw_only=True)
class VContinuous:
    """Networks that predict v in continuous time ``t = 2 atan(s) / pi`` (Salimans, Ho, ICLR 2022; k-diffusion)."""

    sigma_min: float = 0.002
    sigma_max: float = 80.0

    def scalings(self, sigma: Tensor, /) -> Scalings:
        """Return the numbers at the noise levels."""
        return velocity_scalings(sigma, sigma.atan() * (2 / math.pi))


@dataclass(frozen=True, kw_only=True)
class Flow:
    """Networks of flow matching: velocity ``z - x0`` at ``x_t = (1 - t) x0 + t z = x / (1 + s)``, ``t = s / (1 + s)``.

    Source: Lipman et al., Flow Matching for Generative Modeling, ICLR 2023; Liu et al., Rectified Flow, ICLR 2023.

    Args:
        noise_scale: The network is told ``noise_scale * t``; 1000 for the networks of diffusers.
        sigma_min: Smallest noise level; the default is time 0.001.
        sigma_max: Largest one; the default is time 0.999.
    """

    noise_scale: float = 1.0
    sigma_min: float = 1 / 999
    sigma_max: float = 999.0

    def scalings(self, sigma: Tensor, /) -> Scalings:
        """Return the numbers at the noise levels."""
        c_in = 1 / (1 + sigma)
        time = sigma * c_in
        return Scalings(c_in, -time, c_in, self.noise_scale * time)


def epsilon_scalings(sigma: Tensor, c_noise: Tensor) -> Scalings:
    """Return the numbers of a network that predicts the noise z of ``x0 + s z``."""
    return Scalings(torch.ones_like(sigma), -sigma, (sigma**2 + 1).rsqrt(), c_noise)


def velocity_scalings(sigma: Tensor, c_noise: Tensor) -> Scalings:
    """Return the numbers of a network that predicts ``v = (z - s x0) / sqrt(s^2 + 1)``."""
    c_in = (sigma**2 + 1).rsqrt()
    return Scalings(c_in**2, -sigma * c_in, c_in, c_noise)


def _levels(x: Tensor, sigma: Tensor) -> Tensor:
    """Return the noise levels as [1] or [B], of the type of the samples."""
    if sigma.numel() not in (1, len(x)):
        raise InputError(f"there are {len(x)} samples but {sigma.numel()} noise levels; give one, or one per sample")
    return sigma.to(x.dtype).reshape(-1)


def _shape(values: Tensor) -> list[int]:
    return list(values.shape)
