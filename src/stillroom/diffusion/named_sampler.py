"""From what a user says - solver, budget, schedule or a file - to a sampler."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from stillroom.diffusion.amed.sampler import AMEDSampler
from stillroom.diffusion.denoiser import DenoisingModel
from stillroom.diffusion.sampler import Sampler, steps_for
from stillroom.diffusion.schedules import SCHEDULES
from stillroom.diffusion.schedules import schedule as build
from stillroom.diffusion.solvers import make_solver, solver_options
from stillroom.diffusion.solvers.plan import Solver, with_final_denoising
from stillroom.errors import InputError, unknown_name

__all__ = ["AUTO", "NFE", "check_auto", "load_sampler", "named_sampler"]

AUTO = "auto"
# Of the solvers and schedules without a search, the nearest to a fine reference on the digits at 5 to 10 evaluations.
SOLVER, ORDER, SCHEDULE, NFE = "ipndm", 3, "polynomial", 8
FILES = (".json", ".safetensors")


def named_sampler(
    model: DenoisingModel,
    *,
    solver: str | None = None,
    order: int | None = None,
    nfe: int | None = None,
    schedule: str | None = None,
    rho: float | None = None,
    afs: bool = False,
    denoise_to_zero: bool = False,
) -> Sampler | AMEDSampler:
    """Return the sampler that a few words name.

    Args:
        model: What it is for.
        solver: A key of ``SOLVERS``.
        order: The solver's, where it has one.
        nfe: Evaluations of the model for a sample.
        schedule: A key of ``SCHEDULES``, or a file of a sampler, which says everything but solver and order.
        rho: Exponent of the schedule, where it has one.
        afs: Analytical first step, which saves an evaluation.
        denoise_to_zero: Spend the last evaluation on the final noise level's denoised images.

    Raises:
        InputError: There is no such solver or schedule, or they do not go together.

    Example:
        >>> from stillroom.diffusion.load import load_denoiser
        >>> named_sampler(load_denoiser("digits"), solver="dpmpp", nfe=5).nfe
        5
    """
    if schedule is not None and schedule.endswith(FILES):
        given = {"nfe": nfe, "rho": rho, "afs": afs, "denoise_to_zero": denoise_to_zero}
        _refuse(given, f"the file {schedule} says all but solver and order")
        return _from_file(model, Path(schedule), solver, order)
    name = SCHEDULE if schedule is None else schedule
    if name not in SCHEDULES:
        raise unknown_name("schedule", name, SCHEDULES)
    if solver is None:
        solver, order = SOLVER, ORDER if order is None else order
    chosen = make_solver(solver, **({} if order is None else {"order": order}))
    options: dict[str, object] = {} if rho is None else {"rho": rho}
    if name == "discrete":
        if model.sigmas is None:
            raise InputError(f"--schedule discrete takes a model's own noise levels, and {model.name} has none")
        options["levels"] = model.sigmas
    return _spend(model, chosen, NFE if nfe is None else nfe, name, options, afs, denoise_to_zero)


def _spend(
    model: DenoisingModel,
    solver: Solver,
    nfe: int,
    name: str,
    options: Mapping[str, object],
    afs: bool,
    denoise_to_zero: bool,
) -> Sampler:
    """Return the sampler with as many steps as cost the budget."""
    left = nfe + afs - denoise_to_zero
    # A step costs one evaluation or two; of the solvers that need two, some need one on a last step to 0.
    for steps in dict.fromkeys((left, (left + 1) // 2, left // 2)):
        if steps >= 1:
            sigmas = build(name, steps + 1, model.sigma_min, model.sigma_max, **options)
            sampler = Sampler(solver, tuple(sigmas.tolist()), afs=afs, denoise_to_zero=denoise_to_zero)
            if sampler.nfe == nfe:
                if denoise_to_zero:
                    with_final_denoising(sampler.plan)
                return sampler
    steps_for(solver, nfe, afs=afs, denoise_to_zero=denoise_to_zero)  # says which budgets there are
    raise InputError(f"{solver.name} on {name} cannot spend {nfe} evaluations; try one more or one less")


def check_auto(nfe: int | None, **others: object) -> None:
    """Refuse options that ``auto`` chooses by itself.

    Raises:
        InputError: One is given, or the budget is none.
    """
    _refuse(others, "--solver auto chooses everything but the budget")
    if nfe is not None and nfe < 1:
        raise InputError(f"nfe is {nfe}; it must be at least 1")


def _refuse(given: Mapping[str, object], why: str) -> None:
    for name, value in given.items():
        if value is not None and value is not False:
            raise InputError(f"{why}; leave out --{name}")


def load_sampler(path: str | Path, model: DenoisingModel) -> Sampler | AMEDSampler:
    """Read what ``stillroom diffusion schedule`` wrote, for this model.

    Raises:
        InputError: The file is missing, damaged, or holds something else.
    """
    return AMEDSampler.load(path).bind(model) if str(path).endswith(".safetensors") else Sampler.load(path)


def _from_file(model: DenoisingModel, path: Path, solver: str | None, order: int | None) -> Sampler | AMEDSampler:
    loaded = load_sampler(path, model)
    if isinstance(loaded, AMEDSampler):
        if solver is not None or order is not None:
            raise InputError(f"{path} holds an AMED sampler, which is its own solver; leave out --solver and --order")
        return loaded
    if solver is None and order is None:
        return loaded
    key, options = solver_options(loaded.solver)
    if solver is not None and solver != key:
        key, options = solver, {}
    if order is not None:
        options = {**options, "order": order}
    return replace(loaded, solver=make_solver(key, **options))
