"""Sampling: one loop for every solver, schedule and denoiser."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from stillroom.diffusion.denoiser import Denoiser
from stillroom.diffusion.solvers.plan import (
    Coefficients,
    Memory,
    Plan,
    Solver,
    advance,
    as_sigmas,
    begin,
    coefficients,
    with_final_denoising,
)
from stillroom.errors import InputError

__all__ = ["Trajectory", "integrate", "sample", "trajectory"]

Transform = Callable[[Tensor], Tensor]
Watch = Callable[[int, Memory, Tensor, Memory], None]


@dataclass(frozen=True)
class Trajectory:
    """Where sampling went.

    Shapes:
        states: [N + 1, B, ...], the states at the schedule's noise levels; ``denoise_to_zero`` is one more step, to 0.
        denoised: [N, B, ...], what the denoiser said at the start of each step, before any ``transform``.
        derivatives: [N, B, ...], ``(x - D) / sigma`` likewise.
    """

    sigmas: tuple[float, ...]
    states: Tensor
    denoised: Tensor
    derivatives: Tensor
    nfe: int


def integrate(
    plan: Plan,
    table: Coefficients,
    denoiser: Denoiser,
    x: Tensor,
    *,
    condition: Any = None,
    afs: bool = False,
    transform: Transform | None = None,
    watch: Watch | None = None,
) -> Tensor:
    """Run a plan from the state ``x`` at its first noise level; nothing is read on the host, and it compiles whole.

    Args:
        plan: The evaluations.
        table: The plan's numbers on the device of ``x``.
        denoiser: The model.
        x: [B, ...].
        condition: Passed to every evaluation.
        afs: Analytical first step: the first call takes the unit-variance prior's output instead of the model's.
        transform: Applied to every output before it is used (dynamic thresholding, say).
        watch: Told every call's number, the memory before, the (transformed) output and the memory after.

    Returns:
        [B, ...], the state at the last noise level.
    """
    memory = begin(plan, x)
    for k, call in enumerate(plan.calls):
        if afs and k == 0:
            denoised = memory.x * (1 - call.sigma / (1 + call.sigma**2) ** 0.5)
        else:
            denoised = denoiser(memory.x, table.levels[k], condition)
        if transform is not None:
            denoised = transform(denoised)
        if denoised.shape != x.shape:
            raise InputError(
                f"the denoiser returned shape {tuple(denoised.shape)} for samples of shape {tuple(x.shape)} "
                f"(evaluation {k + 1}); it must return denoised samples"
            )
        after = advance(plan, table, k, memory, denoised)
        if watch is not None:
            watch(k, memory, denoised, after)
        memory = after
    return memory.x


def sample(
    denoiser: Denoiser,
    noise: Tensor,
    sigmas: Sequence[float] | Tensor,
    solver: Solver,
    *,
    condition: Any = None,
    afs: bool = False,
    denoise_to_zero: bool = False,
    transform: Transform | None = None,
) -> Tensor:
    """Sample from a diffusion model.

    Args:
        denoiser: The model.
        noise: [B, ...], unit-variance Gaussian noise, float32 or float64 (half precision stays inside the model).
        sigmas: The schedule, falling, honoured exactly; a final 0 makes the last step return the denoiser's output.
        solver: How to integrate.
        condition: Passed to every evaluation.
        afs: Analytical first step: saves one evaluation (Dockhorn et al., GENIE, NeurIPS 2022).
        denoise_to_zero: Spend one evaluation more at the last noise level and return its output.
        transform: Applied to every output of the denoiser, such as ``dynamic_threshold``; off by default.

    Returns:
        [B, ...], samples at the schedule's last noise level.

    Raises:
        InputError: The schedule is none, or the noise has another type.
        InputError: The denoiser returned a value that is not finite, or another shape; the message names the step.

    Example:
        >>> from stillroom.diffusion.solvers.euler import Euler
        >>> sample(lambda x, sigma, condition: 0 * x, torch.ones(1, 2), [4.0, 1.0], Euler())
        tensor([[1., 1.]])
    """
    plan, table, x = _prepare(noise, sigmas, solver, denoise_to_zero)
    with torch.no_grad():
        result = integrate(plan, table, denoiser, x, condition=condition, afs=afs, transform=transform)
        if not bool(result.isfinite().all()):
            _explain(plan, table, denoiser, x, condition, afs, transform)
    return result


def trajectory(
    denoiser: Denoiser,
    noise: Tensor,
    sigmas: Sequence[float] | Tensor,
    solver: Solver,
    *,
    condition: Any = None,
    afs: bool = False,
    denoise_to_zero: bool = False,
    transform: Transform | None = None,
) -> Trajectory:
    """Sample like :func:`sample` and return every state on the way.

    Raises:
        InputError: As for :func:`sample`.
    """
    plan, table, x = _prepare(noise, sigmas, solver, denoise_to_zero)
    states, outputs, derivatives, said = [x], [], [], [x]

    def listen(denoised: Tensor) -> Tensor:
        said[0] = denoised
        return denoised if transform is None else transform(denoised)

    def watch(k: int, before: Memory, denoised: Tensor, after: Memory) -> None:
        call = plan.calls[k]
        if k == 0 or plan.calls[k - 1].step != call.step:
            outputs.append(said[0])
            derivatives.append((before.x - said[0]) / call.sigma)
        if call.correct is not None:
            states.append(after.base)
        if not call.hold or (k == len(plan.calls) - 1):
            states.append(after.x)

    with torch.no_grad():
        result = integrate(plan, table, denoiser, x, condition=condition, afs=afs, transform=listen, watch=watch)
        if not bool(result.isfinite().all()):
            _explain(plan, table, denoiser, x, condition, afs, transform)
    return Trajectory(
        plan.sigmas, torch.stack(states), torch.stack(outputs), torch.stack(derivatives), len(plan.calls) - afs
    )


def _prepare(
    noise: Tensor, sigmas: Sequence[float] | Tensor, solver: Solver, denoise_to_zero: bool
) -> tuple[Plan, Coefficients, Tensor]:
    if noise.dtype not in (torch.float32, torch.float64):
        raise InputError(f"noise must be float32 or float64, got {noise.dtype}; the state of a solver is never halved")
    plan = solver.plan(as_sigmas(sigmas))
    if denoise_to_zero:
        plan = with_final_denoising(plan)
    return plan, coefficients(plan, noise), noise.contiguous() * plan.sigmas[0]


def _explain(
    plan: Plan,
    table: Coefficients,
    denoiser: Denoiser,
    x: Tensor,
    condition: Any,
    afs: bool,
    transform: Transform | None,
) -> None:
    """Run again, slowly, to say at which evaluation a value stopped being finite."""

    def watch(k: int, before: Memory, denoised: Tensor, after: Memory) -> None:
        where = (
            f"evaluation {k + 1} of {len(plan.calls)} (step {plan.calls[k].step + 1}, sigma {plan.calls[k].sigma:g})"
        )
        if not bool(denoised.isfinite().all()):
            raise InputError(f"the denoiser returned a value that is not finite at {where}")
        if not bool(after.x.isfinite().all()):
            raise InputError(f"the sample is not finite after {where}; use a lower order or a more even schedule")

    integrate(plan, table, denoiser, x, condition=condition, afs=afs, transform=transform, watch=watch)
    raise InputError("the sample is not finite, but was when sampled again; the denoiser is not deterministic")
