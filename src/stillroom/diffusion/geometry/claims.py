"""What the two geometric papers say about sampling trajectories, each with a number and whether it holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.linalg import vector_norm

from stillroom.diffusion.geometry.calibration import shape_spread
from stillroom.diffusion.geometry.metrics import falling, single_peak
from stillroom.diffusion.geometry.score_deviation import ScoreDeviation
from stillroom.diffusion.geometry.study import INTERPOLATIONS, Study

__all__ = ["Claim", "check_claims"]

LARGE = 1 / 8  # noise from this share of the largest on counts as large: 10 of 80
RISE = 0.001  # a mean over few samples may rise by so much where its expectation falls


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A statement of the papers, measured.

    Args:
        name: Short name.
        statement: What is claimed.
        measured: What was found, in words.
        numbers: The same as numbers.
        bound: What must be so for the claim to hold, in words.
        holds: Whether it is.
    """

    name: str
    statement: str
    measured: str
    numbers: Mapping[str, float]
    bound: str
    holds: bool


def check_claims(study: Study) -> list[Claim]:
    """Check every claim the study has measurements for."""
    claims = [
        _norm_law(study),
        _start_norm(study),
        _monotone(study, "norms fall", "the norm of the state falls from step to step", study.metrics.norm),
        _monotone(study, "distance falls", "states come nearer to their end with every step", study.metrics.distance),
        _derivative_norm(study),
        _deviation(study),
        _dimensions(study),
        _same_shape(study),
        _monotone(
            study,
            "denoising is monotone",
            "outputs come nearer to the last output with every step",
            study.metrics.distance_denoised,
        ),
        _denoised_first(study),
        _convex(study),
        _interpolation(study),
    ]
    if study.ascent is not None:
        claims.append(_ascent(study.ascent.state, study.ascent.denoised, study.ascent.step))
    if study.gaussian is not None:
        claims.append(_gaussian(study, study.gaussian.score_error))
    if study.deviation is not None:
        claims.append(_learned(study, study.deviation))
    return claims


def _norm_law(study: Study) -> Claim:
    levels = study.path.states.new_tensor(study.path.sigmas).double()
    squares = study.metrics.norm.double().square().mean(1)
    ratio = squares / (squares[-1] + levels.square() * study.path.states[0, 0].numel())
    worst = float((ratio - 1).abs().max())
    return Claim(
        name="norm law",
        statement="E‖x‖² = E‖x₀‖² + σ² d at every noise level",
        measured=f"largest relative difference {worst:.1%}",
        numbers={"largest_relative_difference": worst},
        bound="at most 10 %",
        holds=worst <= 0.1,
    )


def _start_norm(study: Study) -> Claim:
    relative = study.metrics.norm[0] / (study.path.sigmas[0] * study.path.states[0, 0].numel() ** 0.5)
    mean, worst = float(relative.mean()), float((relative - 1).abs().max())
    return Claim(
        name="start norm",
        statement="trajectories start on a thin shell of radius σ √d",
        measured=f"‖x‖ / (σ √d) is {mean:.3f} on average, at most {worst:.1%} off",
        numbers={"mean": mean, "largest_difference": worst},
        bound="mean within 5 %",
        holds=abs(mean - 1) <= 0.05,
    )


def _monotone(study: Study, name: str, statement: str, curve: Tensor) -> Claim:
    share = falling(curve)
    mean = float(falling(curve.mean(1, keepdim=True)))
    whole, each = float((share == 1).double().mean()), float(share.mean())
    average = curve.mean(1)
    rise = float((average / average.cummin(0).values.clamp_min(1e-12)).amax() - 1)  # over the least so far
    return Claim(
        name=name,
        statement=statement,
        measured=(
            f"on {each:.1%} of all steps, on every step of {whole:.0%} of the trajectories; "
            f"their mean on {mean:.0%} of the steps" + (f", then rising by {rise:.2%}" if mean < 1 else "")
        ),
        numbers={
            "share_of_steps": each,
            "share_of_trajectories": whole,
            "share_of_steps_of_mean": mean,
            "largest_rise": rise,
        },
        bound=f"the mean rises by at most {RISE:.1%} in all",
        holds=rise <= RISE,
    )


def _derivative_norm(study: Study) -> Claim:
    relative = study.metrics.norm_derivative.mean(1) / study.path.states[0, 0].numel() ** 0.5
    share = float(((relative - 1).abs() <= 0.1).double().mean())
    low, high = float(relative.min()), float(relative.max())
    return Claim(
        name="derivative norm",
        statement="the norm of dx/dσ stays close to √d",
        measured=f"within 10 % on {share:.0%} of the steps; between {low:.2f} and {high:.2f} of √d",
        numbers={"share_within_tenth": share, "least": low, "most": high},
        bound="within 10 % on half of the steps",
        holds=share >= 0.5,
    )


def _deviation(study: Study) -> Claim:
    curve = study.metrics.deviation
    peaked = float(single_peak(curve).double().mean())
    mean = curve.mean(1)
    at = int(mean.argmax())
    chord = float(study.metrics.distance[0].mean())
    height = float(mean[at]) / chord
    sigma = study.path.sigmas[at + 1]
    return Claim(
        name="deviation rises then falls",
        statement="the deviation from the chord has one peak, and is small against the chord",
        measured=f"one peak in {peaked:.0%} of the trajectories, at σ = {sigma:.2g}, {height:.2%} of the chord",
        numbers={"share_of_trajectories": peaked, "peak_sigma": sigma, "peak_over_chord": height},
        bound="one peak in 90 % of them, below 10 % of the chord",
        holds=peaked >= 0.9 and height < 0.1,
    )


def _dimensions(study: Study) -> Claim:
    full, across = study.projection.explained_full.mean(0), study.projection.explained_orthogonal.mean(0)
    error = study.projection.reconstruction_error.double()
    chord = study.metrics.distance[0].double()
    worst = float((error[2].amax(-1) / chord).mean())
    least = float(study.projection.explained_orthogonal[:, 1].min())
    return Claim(
        name="low dimension",
        statement="a trajectory lies in the chord and two directions more",
        measured=(
            f"across the chord 1, 2, 3 directions explain {across[0]:.1%}, {across[1]:.1%}, {across[2]:.1%} "
            f"(2: at least {least:.1%}); chord and two rebuild every state to {worst:.2%} of the chord"
        ),
        numbers={
            **{f"explained_orthogonal_{k + 1}": float(across[k]) for k in range(3)},
            **{f"explained_full_{k + 1}": float(full[k]) for k in range(3)},
            "least_explained_orthogonal_2": least,
            "largest_error_over_chord": worst,
        },
        bound="two explain 95 % across the chord on average",
        holds=float(across[1]) >= 0.95,
    )


def _same_shape(study: Study) -> Claim:
    spread = shape_spread(study.coordinates)
    return Claim(
        name="same shape",
        statement="all trajectories have the same boomerang shape",
        measured=f"aligned, they are {spread:.1%} of its size away from their mean (rms)",
        numbers={"relative_spread": spread},
        bound="at most 30 %",
        holds=spread <= 0.3,
    )


def _denoised_first(study: Study) -> Claim:
    end = study.jump[-1]
    jumps, states = (vector_norm((x - end).flatten(2), dim=-1) for x in (study.jump[:-1], study.path.states[:-1]))
    ahead = float((jumps <= states).double().mean())
    scale = vector_norm(end.flatten(1), dim=-1).mean()
    jump_sigma, state_sigma = (_first_below(curve.mean(1) / scale, 0.1, study.path.sigmas) for curve in (jumps, states))
    return Claim(
        name="jumps arrive first",
        statement="outputs are nearer to the end than the states they are computed from (ODE jump)",
        measured=(
            f"on {ahead:.1%} of all steps; outputs are within 10 % of the end from σ = {jump_sigma:.2g} on, "
            f"states from {state_sigma:.2g}"
        ),
        numbers={"share_of_steps": ahead, "sigma_of_jump": jump_sigma, "sigma_of_state": state_sigma},
        bound="on 99 % of all steps",
        holds=ahead >= 0.99,
    )


def _first_below(curve: Tensor, bound: float, sigmas: Sequence[float]) -> float:
    """Return the noise level from which on a curve [N] stays below a bound."""
    above = (curve > bound).nonzero()
    return sigmas[min(int(above[-1]) + 1, len(curve)) if len(above) else 0]


def _convex(study: Study) -> Claim:
    worst = float(study.convex_error.max())
    return Claim(
        name="convex combination",
        statement="every state of Euler's method is a convex combination of the start and the outputs",
        measured=f"rebuilt to {worst:.0e} of the start's norm",
        numbers={"largest_relative_error": worst},
        bound="rounding: at most 1e-5",
        holds=worst <= 1e-5,
    )


def _interpolation(study: Study) -> Claim:
    middle = study.latents[:, study.latents.shape[1] // 2].flatten(1)
    found = vector_norm(middle, dim=-1) / middle.shape[1] ** 0.5
    numbers = {name.replace(" ", "_"): float(value) for name, value in zip(INTERPOLATIONS, found, strict=True)}
    return Claim(
        name="latent interpolation",
        statement="half way between latents, the linear form loses norm, the other two keep √d",
        measured=", ".join(f"{name} {value:.3f}" for name, value in zip(INTERPOLATIONS, found, strict=True)) + " of √d",
        numbers=numbers,
        bound="linear below 0.8, the others within 15 %",
        holds=float(found[0]) < 0.8 and float((found[1:] - 1).abs().max()) < 0.15,
    )


def _ascent(state: Tensor, denoised: Tensor, step: Tensor) -> Claim:
    allowed = 1e-9 * state.abs().clamp_min(1)  # rounding
    jumps, steps = (float((to >= state - allowed).double().mean()) for to in (denoised, step))
    return Claim(
        name="density ascent",
        statement="log p(D(x)) and log p after an Euler step are at least log p(x), at the same noise level",
        measured=f"for outputs on {jumps:.1%}, for steps on {steps:.1%} of all steps",
        numbers={"share_of_outputs": jumps, "share_of_steps": steps},
        bound="on all",
        holds=jumps == 1 and steps == 1,
    )


def _gaussian(study: Study, error: Tensor) -> Claim:
    mean = error.mean(1)
    sigmas = torch.tensor(study.path.sigmas[:-1], dtype=torch.float64)
    large = float(mean[(sigmas >= LARGE * sigmas[0]).to(mean.device)].max())
    found = mean.cpu().double()
    at = {
        share: float(found[(sigmas.log() - (share * sigmas[0]).log()).abs().argmin()]) for share in (1, LARGE, 1 / 80)
    }
    words = ", ".join(f"{value:.1%} at σ = {share * float(sigmas[0]):.3g}" for share, value in at.items())
    return Claim(
        name="Gaussian start",
        statement="at large noise the score is that of the data's Gaussian",
        measured=f"relative error of the score {words}",
        numbers={"largest_error_at_large_noise": large, "error_at_80th": at[1 / 80]},
        bound=f"at most 5 % for σ ≥ {LARGE * float(sigmas[0]):.3g}",
        holds=large <= 0.05,
    )


def _learned(study: Study, found: ScoreDeviation) -> Claim:
    mean = found.on_optimal.mean(1)
    at = int(mean.argmax())
    sigma = study.path.sigmas[at]
    start, peak, end, own = float(mean[0]), float(mean[at]), float(mean[-1]), float(found.on_learned[-1].mean())
    return Claim(
        name="learned near optimal",
        statement="a learned denoiser is near the closed form at large and at small noise, and departs in the middle",
        measured=(
            f"on the closed form's trajectories ‖D* − D‖ starts at {start:.3g}, peaks with {peak:.3g} at "
            f"σ = {sigma:.2g} and ends at {end:.3g}; on the model's own it ends at {own:.3g}, the distance to a "
            "training image"
        ),
        numbers={"start": start, "peak": peak, "peak_sigma": sigma, "end": end, "end_on_learned": own},
        bound="start and end below a quarter of the peak",
        holds=max(start, end) < 0.25 * peak,
    )
