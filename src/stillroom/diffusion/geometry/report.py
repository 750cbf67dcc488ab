"""A study of sampling trajectories as a run: the numbers as JSON, the plots and pictures as a page."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stillroom.data.images import TensorImages
from stillroom.data.options import DataOptions
from stillroom.data.sources import load_data
from stillroom.diffusion.denoiser import DenoisingModel
from stillroom.diffusion.geometry.claims import Claim, check_claims
from stillroom.diffusion.geometry.page import write_study
from stillroom.diffusion.geometry.study import Study, check_study, measure_trajectories
from stillroom.errors import InputError
from stillroom.reports.page import environment
from stillroom.training.run import RunDirectory

__all__ = ["Studied", "numbers", "study_trajectories", "training_samples"]


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
    command = f"stillroom diffusion trajectory --config {run.config} --out NEW_DIRECTORY"
    write_study(run.report, study, claims, config=kept, environment=environment(), command=command)
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
