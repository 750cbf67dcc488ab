"""Adapters for the geometry of sampling."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from stillroom.diffusion.denoisers.closed_form import GaussianMixture, OptimalDenoiser
from stillroom.diffusion.geometry.calibration import procrustes
from stillroom.diffusion.geometry.curvature import curvature_torsion
from stillroom.diffusion.geometry.gaussian import GaussianScore
from stillroom.diffusion.geometry.interpolation import (
    interpolate_linear,
    interpolate_spherical,
    interpolate_variance_preserving,
)
from stillroom.diffusion.geometry.jump import mean_shift_weights, ode_jump
from stillroom.diffusion.geometry.metrics import trajectory_metrics
from stillroom.diffusion.geometry.projection import project3d
from stillroom.diffusion.geometry.score_deviation import score_deviation
from stillroom.diffusion.sampling import trajectory
from stillroom.diffusion.solvers.euler import Euler

if TYPE_CHECKING:
    from golden.test_golden import Adapter, Case

SYSTEM = "diffusion-geometry"


def _metrics(case: Case) -> dict[str, Tensor]:
    inputs = case.inputs
    found = trajectory_metrics(inputs["trajectory"], inputs["denoised"], inputs["derivative"])
    return {
        "mag_xt": found.norm,
        "mag_denoised": found.norm_denoised,
        "mag_eps": found.norm_derivative,
        "dist_xt": found.distance,
        "dist_denoised": found.distance_denoised,
        "dev_xt": found.deviation,
        "dev_denoised": found.deviation_denoised,
        "cos_xt": found.cosine,
    }


def _score_deviation(case: Case) -> dict[str, Tensor]:
    inputs = case.inputs
    learned = GaussianMixture(inputs["gmm.weight"], inputs["gmm.mean"], inputs["gmm.var"])
    found = score_deviation(learned, OptimalDenoiser(inputs["data"]), inputs["latents"], inputs["sigmas"])
    return {
        "optimal_trajectory": found.optimal.states,
        "optimal_denoised": found.optimal.denoised,
        "diff_sample_traj": found.states,
        "diff_denoised_traj": found.outputs,
        "diff_traj": found.on_learned,
        "diff_opt_traj": found.on_optimal,
    }


def _gaussian(case: Case) -> dict[str, Tensor]:
    inputs = case.inputs
    directions = (inputs.get("eigenvectors"), inputs.get("eigenvalues"), inputs.get("covariance"))
    denoiser = GaussianScore(inputs["mean"], *directions)
    return {"trajectory": trajectory(denoiser, inputs["latents"], inputs["sigmas"], Euler()).states}


def _project(case: Case) -> dict[str, Tensor]:
    found = project3d(case.inputs["trajectory"], components=case.outputs["explained_full"].shape[1])
    return {
        "coords": found.coordinates,
        "explained_orthogonal": found.explained_orthogonal,
        "explained_full": found.explained_full,
        "reconstruction_error": found.reconstruction_error,
    }


def _curvature(case: Case) -> dict[str, Tensor]:
    window = case.hyperparameters["window"]
    found = curvature_torsion(case.inputs["coords"], window=window)
    measured = len(case.inputs["coords"]) - window // 2  # the files stop before the last windows
    return {
        "arc_length": found.arc_length,
        "curvature": found.curvature[:measured],
        "torsion": found.torsion[:measured],
    }


def _procrustes(case: Case) -> dict[str, Tensor]:
    found = {}
    for name in ("2d", "3d"):
        source = case.inputs[f"source{name}"]
        found[f"rotation{name}"] = procrustes(source, case.inputs[f"target{name}"])
        found[f"aligned{name}"] = source @ found[f"rotation{name}"]
    return found


def _jump(case: Case) -> dict[str, Tensor]:
    inputs = case.inputs
    denoiser = OptimalDenoiser(inputs["data"])
    went = trajectory(denoiser, inputs["latents"], inputs["sigmas"], Euler())
    torch.testing.assert_close(went.states, inputs["trajectory"], rtol=case.rtol, atol=case.atol)
    jump = ode_jump(denoiser, inputs["trajectory"], inputs["sigmas"])
    weights = mean_shift_weights(inputs["sigmas"])
    return {
        "jump": jump,
        "log_density_x": _log_densities(denoiser, inputs["trajectory"], inputs["sigmas"]),
        "log_density_denoised": _log_densities(denoiser, jump, inputs["sigmas"]),
        "weight_initial": weights.initial,
        "weight_denoised": weights.denoised,
    }


def _log_densities(denoiser: OptimalDenoiser, states: Tensor, sigmas: Tensor) -> Tensor:
    return torch.stack([denoiser.log_density(x, sigma) for x, sigma in zip(states, sigmas, strict=True)])


def _interpolate(case: Case) -> dict[str, Tensor]:
    a, b, share = case.inputs["a"], case.inputs["b"], case.inputs["lambda"]
    return {
        "linear": interpolate_linear(a, b, share),
        "spherical": interpolate_spherical(a, b, share),
        "variance_preserving": interpolate_variance_preserving(a, b, share),
    }


ADAPTERS: dict[str, Adapter] = {
    "trajectory_metrics": _metrics,
    "score_deviation": _score_deviation,
    "gaussian_score_sampler": _gaussian,
    "project3d": _project,
    "curvature_torsion": _curvature,
    "procrustes": _procrustes,
    "ode_jump": _jump,
    "interpolate": _interpolate,
}
