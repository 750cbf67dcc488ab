"""The page about a study of sampling trajectories: claims, plots, pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stillroom.diffusion.geometry import figures
from stillroom.diffusion.geometry.claims import Claim
from stillroom.diffusion.geometry.study import INTERPOLATIONS, Study
from stillroom.diffusion.images import as_pixels, tile
from stillroom.reports.page import Figure, Page, Picture, Section, picture, write_page
from stillroom.reports.tables import Column, Table

__all__ = ["write_study"]

LEVELS = 12  # pictures along a trajectory
ROWS = 3  # trajectories shown as pictures


def write_study(
    path: Path,
    study: Study,
    claims: Sequence[Claim],
    *,
    config: Mapping[str, Any],
    environment: Mapping[str, Any],
    command: str,
) -> None:
    """Write the page, atomically.

    Raises:
        MissingExtraError: A package for plots, pictures or pages is not installed.
        OutputError: The file cannot be written.
    """
    broken = [claim.name for claim in claims if not claim.holds]
    headline = f"{len(claims) - len(broken)} of the papers' {len(claims)} claims hold for {study.model.name}"
    headline += f"; not: {', '.join(broken)}." if broken else "."
    page = Page(
        kind="sampling trajectories",
        title=f"The geometry of sampling from {study.model.name}",
        headline=headline,
        sections=list(_sections(study, claims)),
        config=config,
        environment=environment,
        command=command,
    )
    write_page(path, page)


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
        text = (
            "The closed form's output is a mean shift: it, and every step towards it, climbs the density of the noisy "
            "data. A learned model does so while it is nearer to the closed form than the state is."
        )
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
