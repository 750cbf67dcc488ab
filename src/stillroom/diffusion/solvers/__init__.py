"""Deterministic solvers of the probability-flow ODE, one file a family; each only turns a schedule into a plan."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from stillroom.diffusion.solvers.adams_bashforth import IPNDM, IPNDMV
from stillroom.diffusion.solvers.deis import DEIS
from stillroom.diffusion.solvers.dpmpp import DPMpp
from stillroom.diffusion.solvers.euler import Euler
from stillroom.diffusion.solvers.fitted import Fitted
from stillroom.diffusion.solvers.plan import Solver
from stillroom.diffusion.solvers.two_stage import DPM2, Heun
from stillroom.diffusion.solvers.unipc import UniPC
from stillroom.errors import InputError, unknown_name

__all__ = [
    "DEIS",
    "DPM2",
    "IPNDM",
    "IPNDMV",
    "SOLVERS",
    "DPMpp",
    "Euler",
    "Fitted",
    "Heun",
    "UniPC",
    "make_solver",
    "solver_options",
]

SOLVERS: dict[str, type[Any]] = {
    "euler": Euler,
    "heun": Heun,
    "dpm2": DPM2,
    "ipndm": IPNDM,
    "ipndm_v": IPNDMV,
    "deis": DEIS,
    "dpmpp": DPMpp,
    "unipc": UniPC,
}

# What a stored sampler may name: also the solver that is nothing without its numbers.
STORED: dict[str, type[Any]] = {**SOLVERS, "fitted": Fitted}


def make_solver(name: str, **options: Any) -> Solver:
    """Return a solver by its key in ``SOLVERS``, or ``fitted`` with its numbers.

    Raises:
        InputError: There is no such solver, or it knows no such option.

    Example:
        >>> make_solver("euler").name
        'euler'
    """
    if name not in STORED or (name not in SOLVERS and not options):
        raise unknown_name("solver", name, SOLVERS)
    known = {field.name for field in fields(STORED[name])}
    for option in options:
        if option not in known:
            raise InputError(f"solver {name} has no option {option!r}; it knows {', '.join(sorted(known)) or 'none'}")
    solver: Solver = STORED[name](**options)
    return solver


def solver_options(solver: Solver) -> tuple[str, dict[str, Any]]:
    """Return a solver's key for :func:`make_solver` and the options that rebuild it."""
    key = next((key for key, kind in STORED.items() if type(solver) is kind), None)
    if key is None:
        raise InputError(f"{type(solver).__name__} is none of stillroom's solvers, so it cannot be stored by name")
    return key, {field.name: getattr(solver, field.name) for field in fields(STORED[key])}
