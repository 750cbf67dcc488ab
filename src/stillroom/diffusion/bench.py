"""Quality against evaluations: solvers x schedules on one model, measured against a fine reference."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from safetensors.torch import save as to_bytes
from torch import Tensor

from stillroom.data.images import TensorImages
from stillroom.data.options import DataOptions
from stillroom.data.sources import load_data
from stillroom.diffusion.auto import choose_sampler
from stillroom.diffusion.bench_report import AUTO, quality_table, write_bench_report
from stillroom.diffusion.denoiser import DenoisingModel
from stillroom.diffusion.gits import CostMatrix, gits
from stillroom.diffusion.quality import Features, classifier_features, frechet_distance, inception_features, rmse
from stillroom.diffusion.sampler import Sampler, steps_for
from stillroom.diffusion.sampling import sample
from stillroom.diffusion.schedules import SCHEDULES, schedule
from stillroom.diffusion.solvers import SOLVERS, make_solver
from stillroom.errors import InputError, unknown_name
from stillroom.files import write_bytes_atomic
from stillroom.reports.page import environment
from stillroom.reports.tables import Table
from stillroom.training.progress import counting
from stillroom.training.run import RunDirectory

__all__ = ["GITS", "Bench", "bench"]

GITS = "gits"
SEARCHED = (GITS, AUTO)  # schedules that are searched for the model, on noise of another seed
REFERENCE_SOLVER = "heun"


@dataclass(frozen=True)
class Bench:
    """What :func:`bench` returns: one record per (solver, schedule, evaluations), best first, and the table."""

    table: Table
    result: dict[str, Any]
    out: Path


def bench(
    model: DenoisingModel,
    *,
    nfe: Sequence[int] = (4, 5, 6, 8, 10),
    solvers: Sequence[str] = ("euler", "heun", "dpmpp", "unipc", "deis", "ipndm"),
    schedules: Sequence[str] = ("polynomial", "logsnr", "time_uniform", GITS, AUTO),
    files: Sequence[str] = (),
    count: int = 64,
    reference_steps: int = 1000,
    batch_size: int = 64,
    classifier: str | None = None,
    fid: bool = False,
    data: str | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
    out: str | Path = "runs/diffusion-bench",
    config: Mapping[str, Any] | None = None,
    show_progress: bool = True,
    resume: bool = False,
    overwrite: bool = False,
) -> Bench:
    """Measure how far each way of sampling ends from a fine solution of the same ODE from the same noise.

    Args:
        model: The model.
        nfe: Numbers of evaluations, each a column.
        solvers: Keys of ``SOLVERS``.
        schedules: Keys of ``SCHEDULES``; gits is searched for the model, auto chooses solver and schedule together.
        files: Stored samplers to measure beside them.
        count: Samples.
        reference_steps: Steps of the reference, Heun's method on the polynomial schedule.
        batch_size: Samples computed at once.
        classifier: Run directory of a classifier of stillroom; the Fréchet distance between real and sampled images is
            measured in its features.
        fid: Measure that distance in the features of the Inception network instead, whose weights must be there: FID.
        data: The real images, as for ``stillroom distill``.
        seed: Seed of the samples' noise; what is searched is searched on other noise.
        device: Where the model computes.
        out: The run directory.
        config: The options as the command line knows them, kept in ``config.yaml``.
        show_progress: Show progress on standard error.
        resume: Keep what the killed run in ``out`` measured and go on.
        overwrite: Replace a finished run in ``out``.

    Raises:
        InputError: Something handed over is wrong; the message names it and the mend.
        InputError: The model returned a value that is not finite.
        OutputError: A result could not be written.
    """
    _check(nfe, solvers, schedules, count, reference_steps, batch_size)
    features = _features(classifier, fid, data)
    wanted = None if features is None or data is None else _real_features(features, data, batch_size)
    loaded = [(Path(file).stem, Sampler.load(file)) for file in files]
    rows = list(_rows(solvers, schedules, loaded, nfe))
    if not rows:
        raise InputError(f"none of the solvers has a step count with {', '.join(map(str, nfe))} evaluations")
    asked = {
        "nfe": list(nfe),
        "solvers": list(solvers),
        "schedules": list(schedules),
        "files": list(files),
        "count": count,
        "reference_steps": reference_steps,
        "batch_size": batch_size,
        "classifier": classifier,
        "fid": fid,
        "data": data,
        "seed": seed,
        "out": str(out),
    }
    kept = {**asked, **(config or {})}
    may_change = {"out", "nfe", "solvers", "schedules", "files", "device"}
    run = RunDirectory.create(out, kept, overwrite=overwrite, resume=resume, may_change=may_change)
    noise = torch.randn(count, *model.shape, generator=torch.Generator().manual_seed(seed)).to(device)
    file = run.path / "reference.safetensors"
    reference = _reference(model, noise, reference_steps, batch_size, file, show_progress)
    search = _Search(model, seed + 1, device)
    cells = _Cells(run.path / "cells.jsonl")
    missing = [row for row in rows if not cells.has(row)]
    with counting("entries", len(rows), done=len(rows) - len(missing), show=show_progress) as progress:
        for number, row in enumerate(missing, len(rows) - len(missing) + 1):
            measured = _measure(model, search.sampler(row), noise, reference, batch_size, features, wanted)
            cells.add({"entry": row.entry, "nfe": row.nfe, **measured})
            progress(number)
    shown = {(row.entry, row.nfe) for row in rows}
    records = [record for record in cells.records if (record["entry"], record["nfe"]) in shown]
    records.sort(key=lambda record: (record["nfe"], record["rmse"]))
    table = quality_table(records, nfe, "rmse")
    result = {
        "model": model.name,
        "count": count,
        "reference": f"{REFERENCE_SOLVER}, {reference_steps} steps",
        "seed": seed,
        "records": records,
        "best": {str(budget): next((r for r in records if r["nfe"] == budget), None) for budget in nfe},
        "environment": environment(),
        "out": str(out),
    }
    run.write_result(result)
    write_bench_report(run, model.name, result, nfe, kept)
    return Bench(table, result, Path(out))


def _features(classifier: str | None, fid: bool, data: str | None) -> Features | None:
    if classifier is not None and fid:
        raise InputError("classifier and fid name two feature networks; give one")
    if (classifier is not None or fid) != (data is not None):
        raise InputError("the distance to real images needs both: data and a feature network (classifier or fid)")
    if fid:
        return inception_features()
    return None if classifier is None else classifier_features(classifier)


def _real_features(features: Features, data: str, batch_size: int) -> Tensor:
    images = load_data(DataOptions(name=data, augment="none")).train
    if not isinstance(images, TensorImages):
        raise InputError(f"{data} does not fit in memory, which the distance needs; choose a smaller data set")
    parts = torch.split(images.pixels, batch_size)
    return torch.cat([features(part.float() / 127.5 - 1) for part in parts])


def _check(
    nfe: Sequence[int], solvers: Sequence[str], schedules: Sequence[str], count: int, steps: int, batch_size: int
) -> None:
    for name, values in (("nfe", nfe), ("solvers", solvers), ("schedules", schedules)):
        if not values:
            raise InputError(f"{name} names nothing to measure")
    for solver in solvers:
        if solver not in SOLVERS:
            raise unknown_name("solver", solver, SOLVERS)
    for name in schedules:
        if name not in SCHEDULES and name not in SEARCHED:
            raise unknown_name("schedule", name, [*SCHEDULES, *SEARCHED])
    for name, value in (("count", count), ("reference_steps", steps), ("batch_size", batch_size), ("nfe", min(nfe))):
        if value < 1:
            raise InputError(f"{name} is {value}; it must be at least 1")


@dataclass(frozen=True)
class _Row:
    """One entry with one number of evaluations: a stored sampler, or what is made of solver and schedule."""

    entry: str
    nfe: int
    solver: str = ""
    schedule: str = ""
    sampler: Sampler | None = None


def _rows(
    solvers: Sequence[str], schedules: Sequence[str], loaded: Sequence[tuple[str, Sampler]], nfe: Sequence[int]
) -> Iterator[_Row]:
    for budget in nfe:
        for name in schedules:
            if name == AUTO:
                yield _Row(AUTO, budget, schedule=AUTO)
                continue
            for solver in solvers:
                if _fits(solver, budget):
                    yield _Row(f"{make_solver(solver).name} · {name}", budget, solver, name)
        for stem, sampler in loaded:
            if sampler.nfe == budget:
                yield _Row(f"{stem} (file)", budget, sampler=sampler)


class _Search:
    """Makes the samplers of rows; costs are measured once, and only when asked for."""

    def __init__(self, model: DenoisingModel, seed: int, device: torch.device | str) -> None:
        self.model, self.seed, self.device = model, seed, device
        self._costs: CostMatrix | None = None

    def sampler(self, row: _Row) -> Sampler:
        if row.sampler is not None:
            return row.sampler
        if row.schedule == AUTO:
            return choose_sampler(self.model, row.nfe, seed=self.seed, device=self.device).sampler
        solver = make_solver(row.solver)
        steps = steps_for(solver, row.nfe)
        if row.schedule == GITS:
            if self._costs is None:
                self._costs = gits(self.model, seed=self.seed, device=self.device)
            return Sampler(solver, self._costs.sigmas(steps))
        levels = schedule(row.schedule, steps + 1, self.model.sigma_min, self.model.sigma_max)
        return Sampler(solver, tuple(levels.tolist()))


def _fits(solver: str, nfe: int) -> bool:
    try:
        steps_for(make_solver(solver), nfe)
    except InputError:
        return False
    return True


def _measure(
    model: DenoisingModel,
    sampler: Sampler,
    noise: Tensor,
    reference: Tensor,
    batch_size: int,
    features: Features | None,
    wanted: Tensor | None,
) -> dict[str, Any]:
    found = torch.cat([sampler(model.denoiser, part) for part in torch.split(noise, batch_size)])
    record: dict[str, Any] = {
        "rmse": rmse(found, reference),
        "solver": sampler.solver.name,
        "sigmas": list(sampler.sigmas),
        "afs": sampler.afs,
        "denoise_to_zero": sampler.denoise_to_zero,
    }
    if features is not None and wanted is not None:
        decode = model.decode or (lambda x: x)
        seen = torch.cat([features(decode(part).cpu()) for part in torch.split(found, batch_size)])
        record["frechet"] = frechet_distance(wanted, seen)
    return record


def _reference(model: DenoisingModel, noise: Tensor, steps: int, batch_size: int, file: Path, show: bool) -> Tensor:
    """Compute the reference, or read what a killed run computed."""
    if file.is_file():
        return load_file(file)["samples"].to(noise)
    sigmas = schedule("polynomial", steps + 1, model.sigma_min, model.sigma_max)
    parts = []
    with counting("reference", len(noise), show=show) as progress:
        for part in torch.split(noise, batch_size):
            parts.append(sample(model.denoiser, part, sigmas, make_solver(REFERENCE_SOLVER)))
            progress(sum(map(len, parts)))
    samples = torch.cat(parts)
    write_bytes_atomic(file, to_bytes({"samples": samples.cpu().contiguous()}))
    return samples


class _Cells:
    """What has been measured, one JSON object a line, complete lines only."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.records: list[dict[str, Any]] = []
        if file.is_file():
            self.records = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]

    def has(self, row: _Row) -> bool:
        return any(record["entry"] == row.entry and record["nfe"] == row.nfe for record in self.records)

    def add(self, record: dict[str, Any]) -> None:
        self.records.append(record)
        text = "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in self.records)
        write_bytes_atomic(self.file, text.encode())
