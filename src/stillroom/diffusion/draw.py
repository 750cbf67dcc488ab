"""The batch job of ``stillroom diffusion sample``: many samples, one file a seed, resumable to the same pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from stillroom.diffusion.amed.sampler import AMEDSampler
from stillroom.diffusion.auto import choose_sampler
from stillroom.diffusion.denoiser import DenoisingModel
from stillroom.diffusion.images import as_pixels, check_pictures, draw_noise, drawn_class, read_png, tile, write_png
from stillroom.diffusion.named_sampler import AUTO, NFE, check_auto, load_sampler, named_sampler
from stillroom.diffusion.sampler import Sampler
from stillroom.diffusion.warmup import Draw, random_classes
from stillroom.errors import InputError, unknown_name
from stillroom.reports.page import enlarge, environment
from stillroom.training.progress import counting
from stillroom.training.run import RunDirectory

__all__ = ["Drawn", "draw"]

NO_CLASS = "none"
MOST_IN_GRID = 100
GRID_WIDTH = 480  # pixels, at least
STORED = ("schedule.json", "schedule.safetensors")


@dataclass(frozen=True)
class Drawn:
    """What :func:`draw` returns: the files, in the order of their seeds, and what stands in ``result.json``."""

    files: tuple[Path, ...]
    result: dict[str, Any]
    out: Path


def draw(
    model: DenoisingModel,
    *,
    count: int = 16,
    solver: str | None = None,
    order: int | None = None,
    nfe: int | None = None,
    schedule: str | None = None,
    rho: float | None = None,
    afs: bool = False,
    denoise_to_zero: bool = False,
    class_name: str | None = None,
    seed: int = 0,
    batch_size: int = 64,
    device: torch.device | str = "cpu",
    out: str | Path = "runs/samples",
    config: Mapping[str, Any] | None = None,
    show_progress: bool = True,
    resume: bool = False,
    overwrite: bool = False,
) -> Drawn:
    """Draw samples and write each to a file named after its seed, ``seed-000017.png``.

    Noise, and class where there are several, come from a generator of the sample's own. The last bits also depend on
    the batch a sample is computed in; a resumed job therefore computes the same batches.

    Args:
        model: See :func:`~stillroom.diffusion.load.load_denoiser`.
        count: Number of samples; their seeds are ``seed``, ``seed + 1``, ...
        solver: Name of the solver (ipndm of order 3 when not given), or auto: choose solver, order and schedule by
            measuring this model.
        order: The solver's order, where it has one.
        nfe: Evaluations of the model for a sample; 8 when not given.
        schedule: Name of the noise schedule (polynomial when not given), or a file of stillroom diffusion schedule.
        rho: Exponent of the schedule, where it has one.
        afs: Analytical first step: saves an evaluation.
        denoise_to_zero: Spend the last evaluation on removing the noise that is left.
        class_name: Name or number of the class to draw, or none for the model without a class; each sample draws its
            own when not given.
        seed: Seed of the first sample.
        batch_size: Samples computed at once.
        device: Where the model computes.
        out: Folder of the samples.
        config: What else decides the samples: the model's options, as they stand in ``config.yaml``.
        show_progress: Show progress on standard error.
        resume: Go on with an interrupted job in ``out``; files that are there stay.
        overwrite: Replace the samples of an earlier job in ``out``.

    Raises:
        InputError: Something handed over is wrong; the message names it and the mend.
        InputError: The model returned a value that is not finite.
        OutputError: A file could not be written.
    """
    for name, value, least in (("count", count, 1), ("batch_size", batch_size, 1), ("seed", seed, 0)):
        if value < least:
            raise InputError(f"{name} is {value}; it must be at least {least}")
    check_pictures()
    chosen = _class(model, class_name)
    words: dict[str, Any] = {
        "solver": solver,
        "order": order,
        "nfe": nfe,
        "schedule": schedule,
        "rho": rho,
        "afs": afs,
        "denoise_to_zero": denoise_to_zero,
    }
    kept = _kept(Path(out)) if resume else None
    sampler: Sampler | AMEDSampler | None = None
    if solver == AUTO:
        check_auto(nfe, **{name: value for name, value in words.items() if name not in ("solver", "nfe")})
    elif kept is None:
        sampler = named_sampler(model, **words)
    samples = {"count": count, **words, "class": class_name, "seed": seed, "batch_size": batch_size}
    asked = {**(config or {}), **samples, "out": str(out)}
    run = RunDirectory.create(out, asked, overwrite=overwrite, resume=resume, may_change={"out"})
    if kept is not None:
        # What was chosen is kept: chosen again on another machine, it could be something else.
        sampler = load_sampler(kept, model)
    else:
        sampler = sampler or _choose(model, nfe, chosen, device, show_progress)
        sampler.save(run.path / STORED[isinstance(sampler, AMEDSampler)])
    files = tuple(run.path / f"seed-{number:06d}.png" for number in range(seed, seed + count))
    done = sum(file.exists() for file in files)
    with counting("samples", count, done=done, show=show_progress) as progress:
        for start in range(0, count, batch_size):
            batch = files[start : start + batch_size]
            if absent := sum(not file.exists() for file in batch):
                _batch(model, sampler, range(seed + start, seed + start + len(batch)), chosen, device, batch)
                done += absent
                progress(done)
    pictures = [read_png(file) for file in files[:MOST_IN_GRID]]
    for file, pixels in zip(files, pictures, strict=False):
        if pixels.shape != pictures[-1].shape:
            raise InputError(f"{file} is no sample of this job; remove it and resume")
    write_png(run.path / "grid.png", enlarge(tile(torch.stack(pictures)), GRID_WIDTH))
    result: dict[str, Any] = {
        "model": model.name,
        "sampler": sampler.solver.name if isinstance(sampler, Sampler) else "amed",
        "sigmas": list(sampler.sigmas),
        "nfe": sampler.nfe,
        "count": count,
        "seeds": [seed, seed + count - 1],
        "classes": _classes(model, chosen, range(seed, seed + count)),
        "files": [file.name for file in files],
        "environment": environment(),
        "out": str(out),
    }
    run.write_result(result)
    return Drawn(files, result, run.path)


def _class(model: DenoisingModel, name: str | None) -> int | None:
    """Return the class asked for; ``model.classes`` stands for none, and ``None`` for each sample's own."""
    if name is None:
        return None
    if not model.classes:
        raise InputError(f"{model.name} knows no classes; leave out --class")
    if name == NO_CLASS:
        return model.classes
    names = [str(known) for known in model.extra.get("class_names", ())]
    if name in names:
        return names.index(name)
    if name.isdecimal() and int(name) < model.classes:
        return int(name)
    raise unknown_name("class", name, names or [str(number) for number in range(model.classes)])


def _classes(model: DenoisingModel, chosen: int | None, seeds: Sequence[int]) -> list[int] | None:
    """Return the class of each sample; ``None`` where the model is not told one."""
    if not model.classes or chosen == model.classes:
        return None
    return [drawn_class(seed, model.classes) if chosen is None else chosen for seed in seeds]


def _choose(
    model: DenoisingModel, nfe: int | None, chosen: int | None, device: torch.device | str, show_progress: bool
) -> Sampler:
    """Choose a sampler by measuring the model on the classes that will be drawn."""
    condition: Draw | None = None
    if model.classes and chosen is None:
        condition = random_classes(model.classes)
    elif chosen is not None and chosen != model.classes:
        one = torch.tensor(chosen)
        condition = lambda count, _: one.expand(count)  # noqa: E731
    return choose_sampler(
        model, NFE if nfe is None else nfe, device=device, condition=condition, show_progress=show_progress
    ).sampler


def _kept(out: Path) -> Path | None:
    """Return the sampler an interrupted job stored."""
    return next((out / name for name in STORED if (out / name).is_file()), None)


def _batch(
    model: DenoisingModel,
    sampler: Sampler | AMEDSampler,
    seeds: Sequence[int],
    chosen: int | None,
    device: torch.device | str,
    files: Sequence[Path],
) -> None:
    """Compute one batch and write what is not there."""
    classes = _classes(model, chosen, seeds)
    condition = None if classes is None else torch.tensor(classes, device=device)
    samples = sampler(model.denoiser, draw_noise(seeds, model.shape).to(device), condition)
    with torch.no_grad():
        images = samples if model.decode is None else model.decode(samples)
    for file, image in zip(files, as_pixels(images), strict=True):
        if not file.exists():
            write_png(file, image.permute(1, 2, 0).numpy())
