"""The job of ``stillroom diffusion schedule``: search a sampler, measure it beside what is usual, store it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from stillroom.diffusion.amed import AMEDOptions, AMEDSampler, train_amed
from stillroom.diffusion.auto import COUNT, choose_sampler
from stillroom.diffusion.denoiser import DenoisingModel
from stillroom.diffusion.gits import COEFFICIENT, CostMatrix, gits
from stillroom.diffusion.quality import rmse
from stillroom.diffusion.sampler import Sampler, steps_for
from stillroom.diffusion.sampling import sample
from stillroom.diffusion.schedules import schedule
from stillroom.diffusion.solvers import IPNDMV, make_solver
from stillroom.diffusion.warmup import warmup
from stillroom.errors import InputError, unknown_name
from stillroom.reports.tables import Column, Table

__all__ = ["Found", "Way", "search_schedule"]

Way = Literal["gits", "auto", "amed"]
MEASURED = 64  # samples
FINE = 200  # steps of the solution they are measured against
SUFFIXES = {"gits": ".json", "auto": ".json", "amed": ".safetensors"}


@dataclass(frozen=True)
class Found:
    """What :func:`search_schedule` returns."""

    sampler: Sampler | AMEDSampler
    table: Table
    result: dict[str, Any]
    out: Path


def search_schedule(
    model: DenoisingModel,
    *,
    method: Way = "gits",
    nfe: int = 5,
    solver: str = "ipndm",
    order: int | None = None,
    coefficient: float = COEFFICIENT,
    count: int | None = None,
    trajectories: int = 4096,
    cost: str | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
    out: str | Path | None = None,
    show_progress: bool = True,
    overwrite: bool = False,
) -> Found:
    """Search noise levels for a model and a number of evaluations, and store them for ``sample --schedule``.

    Args:
        model: The model.
        method: gits: dynamic programming on the costs of Euler jumps; auto: measure solvers, schedules and fitted
            rules; amed: train AMED-Solver's predictor.
        nfe: Evaluations of the model for a sample.
        solver: The solver the schedule is for (gits).
        order: Its order; its own default when not given.
        coefficient: Weight of late steps against early ones (gits).
        count: Warm-up samples (gits, auto); 256 and 1,024 when not given.
        trajectories: Trajectories to train on (amed).
        cost: File of the measured costs (gits): read when it is there, else written.
        seed: Seed of the warm-up noise.
        device: Where the model computes.
        out: The file; METHOD.json, or amed.safetensors, in the working folder when not given.
        show_progress: Show progress on standard error.
        overwrite: Replace a file that is there.

    Raises:
        InputError: Something handed over is wrong; the message names it and the mend.
        OutputError: The file could not be written.
    """
    if method not in get_args(Way):
        raise unknown_name("method", method, get_args(Way))
    for name, value in (("nfe", nfe), ("count", 1 if count is None else count), ("trajectories", trajectories)):
        if value < 1:
            raise InputError(f"{name} is {value}; it must be at least 1")
    file = Path(f"{method}{SUFFIXES[method]}" if out is None else out)
    if file.suffix != SUFFIXES[method]:
        raise InputError(f"--out {file}: {method} writes a {SUFFIXES[method]} file; name it so")
    if file.exists() and not overwrite:
        raise InputError(f"{file} is there already; name another file or overwrite it")
    if cost is not None and method != "gits":
        raise InputError(f"cost is a file of gits, not of {method}")
    sampler: Sampler | AMEDSampler
    evaluations: int | None = None
    if method == "gits":
        chosen = make_solver(solver, **({} if order is None else {"order": order}))
        steps = steps_for(chosen, nfe)
        costs = _costs(model, cost, 256 if count is None else count, seed, device)
        about = {"model": model.name, "method": "gits", "seed": seed, "coefficient": coefficient}
        sampler = Sampler(chosen, costs.sigmas(steps, coefficient=coefficient), about=about)
        evaluations = costs.evaluations
    elif method == "auto":
        choice = choose_sampler(
            model, nfe, count=COUNT if count is None else count, seed=seed, device=device, show_progress=show_progress
        )
        sampler, evaluations = choice.sampler, choice.evaluations
    else:
        options = AMEDOptions(afs=nfe % 2 == 1, trajectories=trajectories)
        sampler = train_amed(
            model, steps=(nfe + 1) // 2, options=options, seed=seed, device=device, show_progress=show_progress
        )
    # Measured on noise that no search sees.
    noise, given = next(warmup(model, count=MEASURED, batch_size=MEASURED, seed=2**31 + seed, device=device))
    levels = schedule("polynomial", FINE + 1, model.sigma_min, model.sigma_max)
    fine = sample(model.denoiser, noise, levels, IPNDMV(3), condition=given)

    def error(sampler: Callable[..., Tensor]) -> float:
        return rmse(sampler(model.denoiser, noise, given), fine)

    rows = [[f"{method}, found", nfe, error(sampler)], *_usual(model, nfe, error)]
    table = Table([Column("sampler"), Column("evaluations", "d"), Column("RMSE", ".4g")], rows)
    file.parent.mkdir(parents=True, exist_ok=True)
    sampler.save(file)
    result = {
        "model": model.name,
        "method": method,
        "nfe": sampler.nfe,
        "sigmas": list(sampler.sigmas),
        "solver": sampler.solver.name if isinstance(sampler, Sampler) else "amed",
        "rmse": {str(label): value for label, _, value in rows},
        "evaluations": evaluations,
        "seed": seed,
        "out": str(file),
    }
    return Found(sampler, table, result, file)


def _costs(model: DenoisingModel, file: str | None, count: int, seed: int, device: torch.device | str) -> CostMatrix:
    if file is not None and Path(file).exists():
        return CostMatrix.load(file)
    costs = gits(model, count=count, seed=seed, device=device)
    if file is not None:
        costs.save(file)
    return costs


def _usual(model: DenoisingModel, nfe: int, error: Callable[..., float]) -> list[list[Any]]:
    """Measure what one would take without a search."""
    rows: list[list[Any]] = []
    for key, name in (("dpmpp", "logsnr"), ("ipndm", "polynomial"), ("unipc", "time_uniform"), ("heun", "polynomial")):
        solver = make_solver(key)
        try:
            points = steps_for(solver, nfe) + 1
        except InputError:  # an odd number for a solver of two evaluations a step
            continue
        sigmas = tuple(schedule(name, points, model.sigma_min, model.sigma_max).tolist())
        rows.append([f"{solver.name} · {name}", nfe, error(Sampler(solver, sigmas))])
    return sorted(rows, key=lambda row: float(row[2]))
