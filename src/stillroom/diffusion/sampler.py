"""A chosen way to sample - solver, noise levels, first step - that can be called, stored and loaded."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from stillroom.diffusion.denoiser import Denoiser
from stillroom.diffusion.sampling import sample
from stillroom.diffusion.solvers import make_solver, solver_options
from stillroom.diffusion.solvers.plan import Plan, Solver, as_sigmas
from stillroom.errors import InputError
from stillroom.files import write_json_atomic

__all__ = ["Sampler"]

FORMAT = "stillroom-schedule"
VERSION = 1


@dataclass(frozen=True)
class Sampler:
    """Solver and noise levels together: what a search returns, ``sample --schedule FILE`` reads and tables compare.

    Args:
        solver: How to integrate.
        sigmas: The schedule, falling.
        afs: Analytical first step: the first evaluation is the unit-variance prior's.
        denoise_to_zero: One evaluation more at the last noise level, whose output is the result.
        about: Where it came from: model, method, measurements. Kept in the file.

    Raises:
        InputError: The schedule is none, or shorter than the solver needs.

    Example:
        >>> from stillroom.diffusion.solvers.euler import Euler
        >>> Sampler(Euler(), (80.0, 1.0, 0.002)).nfe
        2
    """

    solver: Solver
    sigmas: tuple[float, ...]
    afs: bool = False
    denoise_to_zero: bool = False
    about: Mapping[str, Any] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "sigmas", as_sigmas(self.sigmas))

    @cached_property
    def plan(self) -> Plan:
        """The solver's evaluations on these noise levels, without the final denoising."""
        return self.solver.plan(self.sigmas)

    @property
    def nfe(self) -> int:
        """Evaluations of the denoiser a sample costs (guidance counts each twice)."""
        return len(self.plan.calls) - self.afs + self.denoise_to_zero

    def __call__(self, denoiser: Denoiser, noise: Tensor, condition: Any = None) -> Tensor:
        """Sample; see :func:`~stillroom.diffusion.sampling.sample`."""
        return sample(
            denoiser,
            noise,
            self.sigmas,
            self.solver,
            condition=condition,
            afs=self.afs,
            denoise_to_zero=self.denoise_to_zero,
        )

    def save(self, path: str | Path) -> None:
        """Write it as JSON, atomically.

        Raises:
            OutputError: It could not be written.
        """
        key, options = solver_options(self.solver)
        about = {
            "format": FORMAT,
            "format_version": VERSION,
            "solver": key,
            "options": options,
            "sigmas": list(self.sigmas),
            "afs": self.afs,
            "denoise_to_zero": self.denoise_to_zero,
            "nfe": self.nfe,
            "about": dict(self.about),
        }
        write_json_atomic(Path(path), about)

    @classmethod
    def load(cls, path: str | Path) -> Sampler:
        """Read what :meth:`save` wrote.

        Raises:
            InputError: The file is missing, damaged, or holds something else.
        """
        try:
            about = json.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise InputError(f"cannot read the schedule {path}: {error.strerror}") from None
        except (ValueError, RecursionError):
            raise InputError(f"{path} is no JSON; a schedule is written by: stillroom diffusion schedule") from None
        if not isinstance(about, dict) or about.get("format") != FORMAT:
            raise InputError(f"{path} holds no schedule of stillroom; one is written by: stillroom diffusion schedule")
        if about.get("format_version") != VERSION:
            raise InputError(
                f"{path} has format version {about.get('format_version')!r:.20}, this stillroom reads {VERSION}"
            )
        try:
            solver = make_solver(str(about["solver"]), **about["options"])
            sigmas = tuple(float(sigma) for sigma in about["sigmas"])
            flags = (bool(about["afs"]), bool(about["denoise_to_zero"]))
        except (KeyError, TypeError, ValueError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"{path} is damaged: {error}") from None
        return cls(solver, sigmas, *flags, about=about.get("about") or {})
