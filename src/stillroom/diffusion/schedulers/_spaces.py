"""The spaces models were trained in: how a pipeline's samples and outputs become states and denoised samples.

A pipeline holds samples ``y = scale * x``, where x is the state that a solver's plan works on. The denoised sample is
linear in state and model output, ``D = p x + q output``; the numbers depend on the noise level alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stillroom.errors import InputError

__all__ = ["Flow", "MeasuredFlow", "Preconditioned", "Rule", "Space", "VariancePreserving"]


Number = Any  # a float, or a tensor [B] of one number a sample


class Rule(NamedTuple):
    """``D = state * x + output * model_output``."""

    state: Number
    output: Number


class Space(Protocol):
    """What a scheduler must know of the space of a model; ``sigma`` is always the noise level of the solver's plan."""

    def scale(self, sigma: Number) -> Number:
        """Return ``y / x``."""

    def input_scale(self, sigma: Number) -> Number:
        """Return what the model's input is of the pipeline's sample."""

    def rule(self, prediction: str, sigma: Number) -> Rule:
        """Return how the denoised sample comes of state and model output."""

    def prior(self, sigma: float) -> float:
        """Return ``D / x`` of the unit-variance Gaussian prior."""

    def timestep(self, sigma: float) -> float:
        """Return what the model is told."""

    def timesteps(self, sigmas: Tensor) -> Tensor:
        """Return what the model is told, of noise levels that are known on the device only."""

    def level(self, timestep: float) -> float:
        """Return the noise level of what the model is told."""

    def shown(self, sigma: Number) -> Number:
        """Return the noise level as ``scheduler.sigmas`` shows it."""

    def mixing(self, sigma: float) -> tuple[float, float]:
        """Return the parts of clean sample and noise in a noisy sample of the pipeline."""


@dataclass(frozen=True)
class VariancePreserving:
    """Discrete models: ``y = (x0 + sigma z) / sqrt(1 + sigma^2)``, told the index of the noise level.

    Args:
        sigmas: Noise levels the model was trained on, rising.
        continuous: It is told ``ln(sigma) / 4`` instead.
    """

    sigmas: NDArray[np.float64]
    continuous: bool = False

    def scale(self, sigma: Number) -> Number:
        return (1 + sigma**2) ** -0.5

    def input_scale(self, sigma: Number) -> Number:
        return 1.0

    def rule(self, prediction: str, sigma: Number) -> Rule:
        if prediction == "epsilon":
            return Rule(1.0, -sigma)
        if prediction == "v_prediction":
            return Rule(1 / (1 + sigma**2), -sigma * (1 + sigma**2) ** -0.5)
        return _sample_rule(prediction, "a discrete model")

    def prior(self, sigma: float) -> float:
        return 1 - sigma / math.hypot(1.0, sigma)

    def timestep(self, sigma: float) -> float:
        if self.continuous:
            return math.log(sigma) / 4
        return float(np.interp(math.log(sigma), np.log(self.sigmas), np.arange(len(self.sigmas))))

    def timesteps(self, sigmas: Tensor) -> Tensor:
        if self.continuous:
            return sigmas.log() / 4
        table = torch.from_numpy(np.log(self.sigmas)).to(sigmas)
        above = torch.searchsorted(table, sigmas.log()).clamp(1, len(table) - 1)
        share = (sigmas.log() - table[above - 1]) / (table[above] - table[above - 1])
        return above - 1 + share.clamp(0, 1)

    def level(self, timestep: float) -> float:
        if self.continuous:
            return math.exp(4 * timestep)
        return math.exp(np.interp(timestep, np.arange(len(self.sigmas)), np.log(self.sigmas)))

    def shown(self, sigma: Number) -> Number:
        return sigma

    def mixing(self, sigma: float) -> tuple[float, float]:
        return self.scale(sigma), sigma * self.scale(sigma)


@dataclass(frozen=True)
class Preconditioned:
    """Models with EDM preconditioning around a raw network: ``y = x = x0 + sigma z``, told ``ln(sigma) / 4``."""

    sigma_data: float

    def scale(self, sigma: Number) -> Number:
        return 1.0

    def input_scale(self, sigma: Number) -> Number:
        return (sigma**2 + self.sigma_data**2) ** -0.5

    def rule(self, prediction: str, sigma: Number) -> Rule:
        skip = self.sigma_data**2 / (sigma**2 + self.sigma_data**2)
        out = sigma * self.sigma_data * (sigma**2 + self.sigma_data**2) ** -0.5
        if prediction in ("epsilon", "v_prediction"):  # the names diffusers has for the two signs of the output
            return Rule(skip, out if prediction == "epsilon" else -out)
        return _sample_rule(prediction, "a model with sigma_data")

    def prior(self, sigma: float) -> float:
        return 1 - sigma / math.hypot(1.0, sigma)

    def timestep(self, sigma: float) -> float:
        return math.log(sigma) / 4

    def timesteps(self, sigmas: Tensor) -> Tensor:
        return sigmas.log() / 4

    def level(self, timestep: float) -> float:
        return math.exp(4 * timestep)

    def shown(self, sigma: Number) -> Number:
        return sigma

    def mixing(self, sigma: float) -> tuple[float, float]:
        return 1.0, sigma


@dataclass(frozen=True)
class Flow:
    """Flow matching: ``y = (1 - t) x0 + t z``, integrated in t, so that it may start at t = 1, pure noise.

    The velocity is ``(y - D) / t``, just as ``(x - D) / sigma`` in the EDM convention: every solver works on t as it
    does on sigma.
    """

    steps: int

    def scale(self, sigma: Number) -> Number:
        return 1.0

    def input_scale(self, sigma: Number) -> Number:
        return 1.0

    def rule(self, prediction: str, sigma: Number) -> Rule:
        if prediction == "flow_prediction":
            return Rule(1.0, -sigma)
        if prediction == "epsilon":
            if not isinstance(sigma, Tensor) and sigma >= 1:
                raise InputError("a flow that predicts epsilon knows nothing of the data at t = 1; start below")
            return Rule(1 / (1 - sigma), -sigma / (1 - sigma))
        return _sample_rule(prediction, "a flow")

    def prior(self, sigma: float) -> float:
        return (1 - sigma) / ((1 - sigma) ** 2 + sigma**2)

    def timestep(self, sigma: float) -> float:
        return self.steps * sigma

    def timesteps(self, sigmas: Tensor) -> Tensor:
        return self.steps * sigmas

    def level(self, timestep: float) -> float:
        return timestep / self.steps

    def shown(self, sigma: Number) -> Number:
        return sigma

    def mixing(self, sigma: float) -> tuple[float, float]:
        return 1 - sigma, sigma


@dataclass(frozen=True)
class MeasuredFlow(Flow):
    """Flow matching along a stored schedule, integrated in sigma = t / (1 - t), as it was when it was measured."""

    def scale(self, sigma: Number) -> Number:
        return 1 / (1 + sigma)

    def rule(self, prediction: str, sigma: Number) -> Rule:
        if prediction == "flow_prediction":
            return Rule(1 / (1 + sigma), -sigma / (1 + sigma))
        return Rule(1.0, -sigma) if prediction == "epsilon" else _sample_rule(prediction, "a flow")

    def prior(self, sigma: float) -> float:
        return 1 - sigma / math.hypot(1.0, sigma)

    def timestep(self, sigma: float) -> float:
        return float(self.steps * self.shown(sigma))

    def timesteps(self, sigmas: Tensor) -> Tensor:
        return self.steps * sigmas / (1 + sigmas)

    def level(self, timestep: float) -> float:
        return timestep / (self.steps - timestep)

    def shown(self, sigma: Number) -> Number:
        return sigma / (1 + sigma)

    def mixing(self, sigma: float) -> tuple[float, float]:
        return 1 / (1 + sigma), sigma / (1 + sigma)


def _sample_rule(prediction: str, kind: str) -> Rule:
    if prediction != "sample":
        raise InputError(f"prediction_type {prediction!r} does not exist for {kind}")
    return Rule(0.0, 1.0)
