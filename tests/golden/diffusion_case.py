"""What the golden cases of diffusion sampling share: the closed-form denoiser that stands for the model."""

from __future__ import annotations

from typing import Any

from stillroom.diffusion.denoiser import Denoiser
from stillroom.diffusion.denoisers.closed_form import GaussianMixture, OptimalDenoiser


def denoiser_of(case: Any) -> Denoiser:
    """Return the case's model: of its points, or of its mixture."""
    inputs = case.inputs
    kind = case.hyperparameters.get("denoiser", "gmm" if "gmm.mean" in inputs else "points")
    if kind == "points":
        return OptimalDenoiser(inputs["data"])
    assert kind == "gmm", f"unknown denoiser {kind!r}"
    return GaussianMixture(inputs["gmm.weight"], inputs["gmm.mean"], inputs["gmm.var"])
