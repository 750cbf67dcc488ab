"""Everything the geometry of sampling says about one model, measured on one batch of trajectories."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.linalg import vector_norm

from stillroom.diffusion.denoiser import DenoisingModel
from stillroom.diffusion.denoisers.closed_form import OptimalDenoiser
from stillroom.diffusion.geometry.calibration import calibrate
from stillroom.diffusion.geometry.curvature import Shape, curvature_torsion
from stillroom.diffusion.geometry.gaussian import fit_gaussian_score
from stillroom.diffusion.geometry.gaussian_start import GaussianStart, gaussian_start
from stillroom.diffusion.geometry.interpolation import (
    interpolate_linear,
    interpolate_spherical,
    interpolate_variance_preserving,
)
from stillroom.diffusion.geometry.jump import mean_shift_weights
from stillroom.diffusion.geometry.metrics import TrajectoryMetrics, trajectory_metrics
from stillroom.diffusion.geometry.projection import Projection, project3d
from stillroom.diffusion.geometry.score_deviation import ScoreDeviation, score_deviation
from stillroom.diffusion.images import draw_noise
from stillroom.diffusion.sampling import Trajectory, sample, trajectory
from stillroom.diffusion.schedules import schedule
from stillroom.diffusion.solvers.euler import Euler
from stillroom.errors import InputError

__all__ = ["INTERPOLATIONS", "Ascent", "Study", "check_study", "measure_trajectories"]

INTERPOLATIONS = {
    "linear": interpolate_linear,
    "spherical": interpolate_spherical,
    "variance preserving": interpolate_variance_preserving,
}
DIRECTIONS = 1000  # of the Gaussian of the data, as published
BETWEEN = 9  # latents of an interpolation, both ends included
SWITCHES = (0.5, 0.25, 0.125, 0.0625, 0.03125, 0.0125)  # of sigma_max: where the model takes over from the Gaussian


@dataclass(frozen=True)
class Ascent:
    """Log densities of the data with noise ``sigma_i`` added: at a state, at what is denoised, after a step.

    Shapes:
        state, denoised, step: [N, B], ``log p_sigma_i`` at ``x_i``, ``D_i`` and ``x_i+1``.
    """

    state: Tensor
    denoised: Tensor
    step: Tensor


@dataclass(frozen=True, kw_only=True)
class Study:
    """What :func:`measure_trajectories` returns, for N steps and B samples.

    Shapes:
        coordinates: [N + 1, B, 3], the projections aligned to the first.
        jump: [N + 1, B, ...], the denoiser's output at every state.
        convex_error: [N + 1, B], of the states as convex combinations of outputs, relative to the start's norm.
        latents: [K, 9, ...], the K kinds of ``INTERPOLATIONS`` between two latents; interpolated: where they lead.
        ascent: Only with the closed form of the data.
        deviation: Only with data, for a model that is not itself the closed form.
        gaussian: Only with data.
    """

    model: DenoisingModel
    path: Trajectory
    metrics: TrajectoryMetrics
    projection: Projection
    coordinates: Tensor
    shape: Shape
    jump: Tensor
    convex_error: Tensor
    latents: Tensor
    interpolated: Tensor
    ascent: Ascent | None
    deviation: ScoreDeviation | None
    gaussian: GaussianStart | None


def measure_trajectories(
    model: DenoisingModel,
    *,
    samples: int = 16,
    steps: int = 100,
    rho: float = 7.0,
    label: int | None = None,
    data: Tensor | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
    say: Callable[[str], None] = lambda _: None,
) -> Study:
    """Sample from a model by Euler's method and measure the trajectories in every way of the two geometric papers.

    Source: Chen, Zhou, Mei, Shen, Chen, Wang, A Geometric Perspective on Diffusion Models, 2023 (arXiv 2305.19947), and
    Chen, Zhou, Wang, Lyu, Geometric Regularity in Deterministic Sampling of Diffusion-based Generative Models, J. Stat.
    Mech. 2025.

    Args:
        model: The model.
        samples: Trajectories.
        steps: Steps of each.
        rho: Exponent of the noise levels, which run from the model's largest to its smallest.
        label: Class to sample, of a class-conditional model; any class by default.
        data: The model's training samples (of the class), for comparison with their closed form and their Gaussian.
        seed: Seed of the first sample's latent, as ``stillroom diffusion sample`` counts; each next one has the next.
        device: Where the model computes.
        say: Told what comes next.

    Shapes:
        data: [n, *model.shape], scaled like the model's samples.

    Raises:
        InputError: The options do not fit together or to the model.
        InputError: The model returned a value that is not finite.
    """
    check_study(model, samples=samples, steps=steps, label=label)
    if data is not None and data.shape[1:] != model.shape:
        raise InputError(f"the data has samples {tuple(data.shape[1:])}, {model.name} {model.shape}; they must agree")
    sigmas = schedule("polynomial", steps + 1, model.sigma_min, model.sigma_max, rho=rho)
    noise = draw_noise(range(seed, seed + samples), model.shape).to(device)

    def denoiser(x: Tensor, sigma: Tensor, _: Any = None, /) -> Tensor:
        condition = None if label is None else torch.full((len(x),), label, device=x.device)
        return model.denoiser(x, sigma, condition)

    say(f"sampling {samples} trajectories of {steps} steps")
    path = trajectory(denoiser, noise, sigmas, Euler())
    levels = path.states.new_tensor(path.sigmas)
    with torch.no_grad():
        jump = torch.cat([path.denoised, denoiser(path.states[-1], levels[-1])[None]])
    projection = project3d(path.states)
    coordinates = calibrate(projection.coordinates)

    say("interpolating between two latents")
    share = torch.linspace(0, 1, BETWEEN)
    latents = torch.stack([between(noise[:1], noise[1:2], share)[:, 0] for between in INTERPOLATIONS.values()])
    interpolated = sample(denoiser, latents.flatten(0, 1), sigmas, Euler()).view_as(latents)

    deviation, ascent, gaussian = None, None, None
    if isinstance(model.denoiser, OptimalDenoiser):
        say("following the density of the data")
        ascent = _ascent(model.denoiser, path, label)
    elif data is not None:
        say(f"comparing with the closed form of {len(data):,} training samples")
        closed = OptimalDenoiser(data.to(device))
        deviation = score_deviation(denoiser, closed, noise, sigmas)
        ascent = _ascent(closed, path, None)
    if data is not None:
        say("starting from the Gaussian of the data")
        fitted = fit_gaussian_score(data.to(device), min(DIRECTIONS, len(data) - 1, data[0].numel()))
        gaussian = gaussian_start(denoiser, fitted, path, _switches(path.sigmas))
    return Study(
        model=model,
        path=path,
        metrics=trajectory_metrics(path.states, path.denoised, path.derivatives),
        projection=projection,
        coordinates=coordinates,
        shape=curvature_torsion(coordinates, window=max(5, steps // 10 | 1)),
        jump=jump,
        convex_error=_convex_error(path),
        latents=latents,
        interpolated=interpolated,
        ascent=ascent,
        deviation=deviation,
        gaussian=gaussian,
    )


def check_study(model: DenoisingModel, *, samples: int, steps: int, label: int | None) -> None:
    """Check the options of a study before anything is computed.

    Raises:
        InputError: They do not fit together or to the model.
    """
    if samples < 2 or steps < 8:
        raise InputError(f"a study needs at least 2 samples and 8 steps, got {samples} and {steps}")
    if label is not None and not 0 <= label < model.classes:
        raise InputError(f"label is {label}; {model.name} has {model.classes} classes, from 0")


def _ascent(closed: OptimalDenoiser, path: Trajectory, label: int | None) -> Ascent:
    levels = path.states.new_tensor(path.sigmas[:-1])
    # In float64: close to the end, densities of neighbouring states differ by less than float32 resolves.
    found = [
        torch.stack([closed.log_density(x.double(), sigma, label) for x, sigma in zip(points, levels, strict=True)])
        for points in (path.states[:-1], path.denoised, path.states[1:])
    ]
    return Ascent(*found)


def _switches(sigmas: Sequence[float]) -> list[int]:
    """Return the numbers of steps after which the noise has fallen to the shares ``SWITCHES`` of the largest."""
    inner = range(1, len(sigmas) - 1)
    nearest = {min(inner, key=lambda i: abs(math.log(sigmas[i] / (share * sigmas[0])))) for share in SWITCHES}
    return sorted(nearest)


def _convex_error(path: Trajectory) -> Tensor:
    weights = mean_shift_weights(path.sigmas)
    start, outputs = path.states[0].double(), path.denoised.double()
    kept = weights.initial.to(start.device).reshape(-1, *(1,) * start.ndim) * start
    rebuilt = kept + torch.tensordot(weights.denoised.to(start.device), outputs, dims=1)
    error: Tensor = vector_norm((rebuilt - path.states).flatten(2), dim=-1) / vector_norm(start.flatten(1), dim=-1)
    return error
