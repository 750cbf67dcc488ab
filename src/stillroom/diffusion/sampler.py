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
from stillroom.diffusion.start import GaussianStart
from stillroom.errors import InputError
from stillroom.files import write_json_atomic

__all__ = ["Sampler", "start_file", "steps_for"]

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
        start: Carries the noise from its own largest level to the first of ``sigmas`` without a call of the model.
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
    start: GaussianStart | None = field(default=None, compare=False)
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
        if self.start is not None:
            noise = self.start(noise, self.sigmas[0]) / self.sigmas[0]
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
        """Write it as JSON, atomically; a start is written beside it as ``NAME.start.safetensors``.

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
            "start": None if self.start is None else start_file(path).name,
            "about": dict(self.about),
        }
        if self.start is not None:
            self.start.save(start_file(path))
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
        start = GaussianStart.load(start_file(path)) if about.get("start") else None
        return cls(solver, sigmas, *flags, start=start, about=about.get("about") or {})


def start_file(path: str | Path) -> Path:
    """Return where the start of the sampler in a file is stored."""
    return Path(path).with_suffix(".start.safetensors")


def steps_for(solver: Solver, nfe: int, *, afs: bool = False, denoise_to_zero: bool = False) -> int:
    """Return the number of steps that cost a budget of evaluations, on a schedule that ends above 0.

    Args:
        solver: How to integrate.
        nfe: Evaluations of the denoiser.
        afs: Analytical first step, which saves one.
        denoise_to_zero: Final denoising, which costs one.

    Raises:
        InputError: No number of steps costs this.

    Example:
        >>> from stillroom.diffusion.solvers import DPMpp, Heun
        >>> steps_for(DPMpp(3), 5), steps_for(Heun(), 5, afs=True)
        (5, 3)
    """
    each = len(solver.plan((2.0, 1.0)).calls)
    steps, rest = divmod(nfe + afs - denoise_to_zero, each)
    if rest or steps < 1:
        possible = [each * max(steps, 1), each * (max(steps, 0) + 1)] if rest or each > 1 else [1]
        shown = " or ".join(str(number - afs + denoise_to_zero) for number in sorted(set(possible)))
        extras = "".join([" with afs" if afs else "", " with denoise_to_zero" if denoise_to_zero else ""])
        raise InputError(f"{solver.name}{extras} cannot spend {nfe} evaluations; use {shown}")
    return steps
