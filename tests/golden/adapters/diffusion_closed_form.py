"""Golden adapter of the optimal denoiser of a finite data set."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from stillroom.diffusion.denoisers.closed_form import OptimalDenoiser

SYSTEM = "diffusion-geometry"


def optimal_denoiser(case: Any) -> dict[str, Tensor]:
    denoiser = OptimalDenoiser(case.inputs["data"])
    levels = list(zip(case.inputs["x"], case.inputs["sigma"], strict=True))
    return {
        "denoised": torch.stack([denoiser(x, sigma) for x, sigma in levels]),
        "log_density": torch.stack([denoiser.log_density(x, sigma) for x, sigma in levels]),
        "score": torch.stack([denoiser.score(x, sigma) for x, sigma in levels]),
    }


ADAPTERS = {"optimal_denoiser": optimal_denoiser}
