"""What a scheduler's configuration says of the model: its noise levels, its space, its default schedule."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from stillroom.diffusion.schedulers._levels import (
    Floats,
    flow_times,
    named_levels,
    spaced_levels,
    table_sigmas,
    training_betas,
)
from stillroom.diffusion.schedulers._spaces import Flow, MeasuredFlow, Preconditioned, Space, VariancePreserving
from stillroom.errors import InputError

__all__ = ["Trained"]

CHOICES = {
    "prediction_type": ("epsilon", "sample", "v_prediction", "flow_prediction"),
    "final_sigmas_type": ("zero", "sigma_min"),
    "timestep_type": ("discrete", "continuous"),
    "time_shift_type": ("exponential", "linear"),
}


class Trained:
    """A model as its scheduler's configuration describes it.

    Args:
        config: The configuration.
        measured: The noise levels are of a stored sampler, in the EDM convention.

    Raises:
        InputError: An option has a value that does not exist.
    """

    def __init__(self, config: Any, *, measured: bool = False) -> None:
        for option, known in CHOICES.items():
            if getattr(config, option) not in known:
                raise InputError(f"{option} is {getattr(config, option)!r}; it must be one of {', '.join(known)}")
        self.config = config
        self.betas = training_betas(config)
        self.products, self.table = table_sigmas(self.betas, config.rescale_betas_zero_snr)
        self.is_flow: bool = config.use_flow_sigmas or config.prediction_type == "flow_prediction"
        self.space: Space
        if self.is_flow:
            self.space = (MeasuredFlow if measured else Flow)(config.num_train_timesteps)
        elif config.sigma_data is not None:
            self.space = Preconditioned(config.sigma_data)
        else:
            self.space = VariancePreserving(self.table, config.timestep_type == "continuous")

    @property
    def range(self) -> tuple[float, float]:
        """Lowest and highest noise level, in the EDM convention."""
        count = self.config.num_train_timesteps
        if self.is_flow:
            low, high = 1 / max(count - 1, 1), float(max(count - 1, 2))
        elif isinstance(self.space, Preconditioned):
            low, high = 0.002, 80.0
        else:
            low, high = float(self.table[0]), float(self.table[-1])
        low = low if self.config.sigma_min is None else self.config.sigma_min
        return low, high if self.config.sigma_max is None else self.config.sigma_max

    @property
    def training_levels(self) -> Floats:
        """Noise levels of the training, falling, as ``scheduler.sigmas`` shows them before there is a schedule."""
        if self.is_flow:
            count = int(self.config.num_train_timesteps)
            return np.arange(count, 0, -1) / count
        return self.table[::-1].copy()

    def default_levels(self, steps: int, mu: float | None, inner: bool) -> tuple[float, ...]:
        """Return the configured schedule with this many steps, in the variable of the space.

        Raises:
            InputError: There is no such schedule.
        """
        named = named_levels(self.config, steps, *self.range, self.table)
        if self.is_flow:
            return flow_times(self.config, steps, mu) if named is None else tuple(s / (1 + s) for s in named)
        return named or spaced_levels(self.table, steps, self.config, inner)

    def levels_at(self, timesteps: Sequence[float] | Tensor) -> list[float]:
        """Return the noise levels of timesteps."""
        times = timesteps.tolist() if isinstance(timesteps, Tensor) else timesteps
        return [self.space.level(float(time)) for time in times]

    @property
    def end(self) -> float:
        """Where a schedule ends that is given by its evaluations alone."""
        return 0.0 if self.config.final_sigmas_type == "zero" or self.is_flow else self.range[0]

    def start_scale(self, sigma: float) -> float:
        """Return ``init_noise_sigma``: as in diffusers, the standard deviation of noisy unit-variance data."""
        return (sigma**2 + 1) ** 0.5 if isinstance(self.space, Preconditioned) else 1.0
