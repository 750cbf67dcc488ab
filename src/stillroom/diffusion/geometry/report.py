"""A study of sampling trajectories as a run: the numbers as JSON, the plots and pictures as a page."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stillroom.data.images import TensorImages
from stillroom.data.options import DataOptions
from stillroom.data.sources import load_data
from stillroom.diffusion.denoiser import DenoisingModel
from stillroom.diffusion.geometry import figures
from stillroom.diffusion.geometry.claims import Claim, check_claims
from stillroom.diffusion.geometry.study import INTERPOLATIONS, Study, check_study, measure_trajectories
from stillroom.diffusion.images import as_pixels, tile
from stillroom.errors import InputError
from stillroom.reports.page import Figure, Page, Picture, Section, environment, picture, write_page
from stillroom.reports.tables import Column, Table
from stillroom.training.run import RunDirectory

__all__ = ["Studied", "numbers", "study_trajectories", "training_samples"]

LEVELS = 12  # pictures along a trajectory
ROWS = 3  # trajectories shown as pictures


@dataclass(frozen=True)
class Studied:
    """What :func:`study_trajectories` returns; ``result`` is what stands in ``result.json``."""

    study: Study
    claims: list[Claim]
    result: dict[str, Any]
    out: Path


def study_trajectories(
    model: DenoisingModel,
    *,
    samples: int = 16,
    steps: int = 100,
    rho: float = 7.0,
    label: int | None = None,
    data: str | None = None,
    data_images: int | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
    out: str | Path = "runs/diffusion-trajectory",
    config: Mapping[str, Any] | None = None,
    show_progress: bool = True,
    overwrite: bool = False,
) -> Studied:
    """Measure a model's sampling trajectories and write numbers, plots and pictures.

    Args:
        model: The model.
        samples: Trajectories.
        steps: Steps of each, by Euler's method.
        rho: Exponent of the noise levels, which run from the model's largest to its smallest.
        label: Class to sample, of a class-conditional model; any class by default.
        data: Data set whose training images the model knows, to compare it with their closed form and their Gaussian:
            digits, mnist, ...; none to compare with nothing. By default what the model says it was trained on.
        data_images: Compare with only so many of the images, the first ones.
        seed: Seed of the first latent; those of the others follow, as for ``stillroom diffusion sample``.
        device: Where the model computes.
        out: The run directory.
        config: The options as the command line knows them, kept in ``config.yaml``.
        show_progress: Show progress on standard error.
        overwrite: Replace a finished run in ``out``.

    Raises:
        InputError: Something handed over is wrong; the message names it and the mend.
        InputError: The model returned a value that is not finite.
        OutputError: A result could not be written.
    """
    begun = time.monotonic()

    def say(text: str) -> None:
        if show_progress:
            print(f"[{time.monotonic() - begun:5.1f} s] {text}", file=sys.stderr, flush=True)

    check_study(model, samples=samples, steps=steps, label=label)
    known = training_samples(model, data, label=label, images=data_images)
    options = {"samples": samples, "steps": steps, "rho": rho, "label": label, "data": data, "seed": seed}
    kept = {**options, "data_images": data_images, "out": str(out), **(config or {})}
    run = RunDirectory.create(out, kept, overwrite=overwrite)
    study = measure_trajectories(
        model, samples=samples, steps=steps, rho=rho, label=label, data=known, seed=seed, device=device, say=say
    )
    claims = check_claims(study)
    result = {
        "model": model.name,
        "samples": samples,
        "seed": seed,
        "training_samples": None if known is None else len(known),
        "claims": [asdict(claim) for claim in claims],
        **numbers(study),
        "environment": environment(),
        "out": str(out),
    }
    run.write_result(result)
    say("drawing")
    _write_page(run, study, claims, result, kept)
    return Studied(study, claims, result, Path(out))


def training_samples(
    model: DenoisingModel, data: str | None, *, label: int | None = None, images: int | None = None
) -> Tensor | None:
    """Return a data set's training images [n, C, H, W] in -1..1, in the model's size; of one class, with a label.

    Args:
        model: The model; without a name, its data is what it says it was trained on.
        data: Name of the data set, ``none`` for nothing.
        label: Class to keep.
        images: Only so many images, the first ones.

    Raises:
        InputError: There is no such data set, or its images do not fit the model.
    """
    name = data or str(model.extra.get("data") or "none")
    if name == "none" or model.decode is not None:
        if data not in (None, "none"):
            raise InputError(f"{model.name} works on latents, so it cannot be compared with the images of {data}")
        return None
    limit = images if images is not None or data is not None else model.extra.get("images")
    found = load_data(DataOptions(name=name, augment="none", image_size=model.shape[-1]))
    if found.shape != model.shape or not isinstance(found.train, TensorImages):
        raise InputError(f"{name} has images {found.shape}, {model.name} {model.shape}; name its own data, or none")
    pixels, target = found.train.pixels[:limit], found.train.target[:limit]
    if label is not None:
        pixels = pixels[target == label]
    if len(pixels) < 2:
        raise InputError(f"{len(pixels)} training images are too few to compare with; take more")
    return pixels.float() / 127.5 - 1


def numbers(study: Study) -> dict[str, Any]:
    """Return the study as what JSON knows: the noise levels and, for every quantity, mean and spread over samples."""
    found: dict[str, Tensor] = {
        **{name: getattr(study.metrics, name) for name in study.metrics.__dataclass_fields__},
        "curvature": study.shape.curvature,
        "torsion": study.shape.torsion,
        "arc_length": study.shape.arc_length,
        "explained_orthogonal": study.projection.explained_orthogonal.T,
        "explained_full": study.projection.explained_full.T,
        **{f"reconstruction_error_{k}": error.T for k, error in enumerate(study.projection.reconstruction_error)},
        **{f"coordinate_{axis}": study.coordinates[..., k] for k, axis in enumerate(("chord", "first", "second"))},
    }
    if study.ascent is not None:
        found |= {f"log_density_{name}": getattr(study.ascent, name) for name in study.ascent.__dataclass_fields__}
    if study.deviation is not None:
        parts = ("states", "outputs", "on_learned", "on_optimal")
        found |= {f"score_deviation_{name}": getattr(study.deviation, name) for name in parts}
    if study.gaussian is not None:
        found["gaussian_score_error"] = study.gaussian.score_error
    starts = None
    if study.gaussian is not None:
        starts = [
            {"steps": k, "sigma": study.path.sigmas[k], "end_error": error.tolist()}
            for k, error in zip(study.gaussian.switches, study.gaussian.end_error, strict=True)
        ]
    return {
        "sigmas": list(study.path.sigmas),
        "curves": {
            name: {"mean": torch.nanmean(values.double(), 1).tolist(), "std": _spread(values.double()).tolist()}
            for name, values in found.items()
        },
        "gaussian_starts": starts,
    }


def _spread(values: Tensor) -> Tensor:
    return (values - torch.nanmean(values, 1, keepdim=True)).square().nanmean(1).sqrt()


def _write_page(
    run: RunDirectory, study: Study, claims: Sequence[Claim], result: Mapping[str, Any], config: Mapping[str, Any]
) -> None:
    broken = [claim.name for claim in claims if not claim.holds]
    headline = f"{len(claims) - len(broken)} of the papers' {len(claims)} claims hold for {study.model.name}"
    headline += f"; not: {', '.join(broken)}." if broken else "."
    page = Page(
        kind="sampling trajectories",
        title=f"The geometry of sampling from {study.model.name}",
        headline=headline,
        sections=list(_sections(study, claims)),
        config=config,
        environment=result["environment"],
        command=f"stillroom diffusion trajectory --config {run.config} --out NEW_DIRECTORY",
    )
    write_page(run.report, page)


def _sections(study: Study, claims: Sequence[Claim]) -> list[Section]:
    holds = {True: "yes", False: "no"}
    table = Table(
        [Column("claim"), Column("measured"), Column("counts as holding if"), Column("holds")],
        [[claim.statement, claim.measured, claim.bound, holds[claim.holds]] for claim in claims],
    )
    sigmas = study.path.sigmas
    samples, steps = study.path.states.shape[1], len(sigmas) - 1
    sections = [
        Section(
            title="What holds",
            text=f"{samples} trajectories of {steps} Euler steps from σ = {sigmas[0]:.4g} to {sigmas[-1]:.2g}.",
            parts=[table],
        ),
        Section(title="On the way", parts=_strips(study)),
        Section(
            title="Norms and distances",
            parts=[
                Figure(figures.distances(study), "Means over the samples."),
                Figure(figures.deviations(study), "Every sample, and their mean."),
            ],
        ),
        Section(
            title="Shape",
            text="Every trajectory in its own three dimensions: its chord and the two directions it varies most in "
            "across it, turned within their plane onto the first trajectory. The scales of the axes differ.",
            parts=[
                Figure(figures.boomerang(study), "The middle 80 % of the trajectories, and their mean."),
                Figure(figures.plane(study), "The same curves across the chord."),
                Figure(figures.reconstruction(study), "Means over the samples."),
                Figure(
                    figures.shapes(study),
                    "By local cubic fits; torsion where a curve bends noticeably. Every sample, and the median.",
                ),
            ],
        ),
    ]
    if study.ascent is not None:
        text = "The denoiser's output is a mean shift: it, and every step, climbs the density of the noisy data."
        sections.append(Section(title="Density", text=text, parts=[Figure(figures.density(study), "Means.")]))
    if study.deviation is not None:
        text = "The model D beside D*, the closed form of its training images, from the same latents."
        parts: list[Figure | Picture] = [
            Figure(figures.closed_form(study), "Means, and every sample on the right."),
            *_ends(study),
        ]
        sections.append(Section(title="Distance from the optimum", text=text, parts=parts))
    if study.gaussian is not None:
        sections.append(_gaussian_section(study))
    sections.append(
        Section(
            title="Between two latents",
            text="From the first latent to the second: " + ", ".join(INTERPOLATIONS) + " interpolation, in rows.",
            parts=_pictures(study, study.interpolated, "Where sampling from the latents in between ends."),
        )
    )
    return [section for section in sections if section.parts]


def _strips(study: Study) -> list[Picture]:
    """Show states and ODE jumps of a few samples side by side."""
    sigmas = study.path.sigmas
    logs = torch.tensor(sigmas, dtype=torch.float64).log()
    wanted = torch.linspace(float(logs[0]), float(logs[-1]), LEVELS, dtype=torch.float64)
    at = sorted({int((logs - level).abs().argmin()) for level in wanted})
    rows = []
    for sample in range(min(ROWS, study.path.states.shape[1])):
        if study.model.decode is None:
            # Scaled to the variance of an image; noisy states of latent models are no images at all.
            scale = study.path.states.new_tensor([(1 + sigmas[k] ** 2) ** -0.5 for k in at]).reshape(-1, 1, 1, 1)
            rows.append(study.path.states[at, sample] * scale if study.path.states.ndim == 5 else None)
        rows.append(study.jump[at, sample])
    shown = [row for row in rows if row is not None]
    levels = ", ".join(f"{sigmas[k]:.2g}" for k in at)
    what = "States, scaled, and below each what the denoiser makes of it (the ODE jump)"
    return _pictures(
        study, torch.stack(shown), f"{what if study.model.decode is None else 'Outputs'}, at σ = {levels}."
    )


def _ends(study: Study) -> list[Picture]:
    assert study.deviation is not None
    ends = torch.stack([study.deviation.learned.states[-1, :LEVELS], study.deviation.optimal.states[-1, :LEVELS]])
    return _pictures(study, ends, "Where the model ends (above) and where the closed form ends, from the same latents.")


def _gaussian_section(study: Study) -> Section:
    assert study.gaussian is not None
    steps = len(study.path.sigmas) - 1
    table = Table(
        [
            Column("σ of the switch", ".3g"),
            Column("evaluations saved", "d"),
            Column("of them [%]", ".0f"),
            Column("distance of the ends, median [%]", ".1f"),
            Column("ends within 10 % [%]", ".0f"),
        ],
        [
            [
                study.path.sigmas[k],
                k,
                100 * k / steps,
                100 * float(error.median()),
                100 * float((error < 0.1).float().mean()),
            ]
            for k, error in zip(study.gaussian.switches, study.gaussian.end_error, strict=True)
        ],
    )
    ends = torch.cat([study.path.states[-1:, :LEVELS], study.gaussian.ends[:, :LEVELS]])
    caption = "Ends of the model alone (first row), and after a Gaussian start down to the noise levels of the table."
    return Section(
        title="Starting from a Gaussian",
        text="The first steps follow the score of the Gaussian with the data's mean and covariance, without the model. "
        "The distance of where sampling then ends from where it ends otherwise is relative to the norm of the latter.",
        parts=[
            Figure(figures.gaussian_score(study), "Every sample, and their mean."),
            table,
            *_pictures(study, ends, caption),
        ],
    )


def _pictures(study: Study, images: Tensor, caption: str) -> list[Picture]:
    """Return images [R, K, ...] as one picture of R rows, or nothing where samples are no images."""
    flat = images.flatten(0, 1)
    if study.model.decode is not None:
        with torch.no_grad():
            flat = study.model.decode(flat)
    if flat.ndim != 4 or flat.shape[1] not in (1, 3):
        return []
    return [picture(tile(as_pixels(flat), images.shape[1]), caption, least=720)]
