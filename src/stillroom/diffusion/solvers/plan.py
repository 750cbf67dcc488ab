"""A solver on a schedule is a plan: numbers fixed in advance, applied by one update rule.

Every deterministic solver here is linear in the states and denoiser outputs it has seen, and its coefficients depend on
the schedule alone. A solver therefore only computes those coefficients, in float64 on the host, and one function
applies them: :func:`advance` for ``sample`` as well as for the diffusers schedulers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from stillroom.errors import InputError

__all__ = [
    "Call",
    "Coefficients",
    "Memory",
    "Plan",
    "Solver",
    "Update",
    "advance",
    "as_sigmas",
    "begin",
    "coefficients",
    "with_final_denoising",
]

History = Literal["denoised", "residual"]


class Update(NamedTuple):
    """``state * base + sum_j weights[j] * h_j``, where ``h_0`` is the newest value of the history."""

    state: float
    weights: tuple[float, ...]


class Call(NamedTuple):
    """One evaluation of the denoiser and what follows from it.

    Args:
        sigma: Noise level of the evaluation.
        step: Interval of the schedule the evaluation belongs to.
        correct: Replaces the base, the state at the start of the step, before anything else (UniPC's corrector).
        update: Computes the next point of evaluation from the base.
        hold: Keep the base for the next call; otherwise the new point becomes the base, and the step is complete.
    """

    sigma: float
    step: int
    correct: Update | None
    update: Update
    hold: bool = False


@dataclass(frozen=True)
class Plan:
    """All evaluations of a solver on a schedule.

    Args:
        sigmas: The schedule, falling; N + 1 points for N steps.
        history: What is remembered of a call: ``denoised`` D, or ``residual`` x - D with x the point of evaluation.
        calls: The evaluations in order.

    Raises:
        InputError: There is no call.
    """

    sigmas: tuple[float, ...]
    history: History
    calls: tuple[Call, ...]

    def __post_init__(self) -> None:
        if not self.calls:
            raise InputError("a plan needs at least one evaluation")

    @property
    def depth(self) -> int:
        """Number of values of the history that any update reads."""
        rows = [row for call in self.calls for row in (call.correct, call.update) if row is not None]
        return max(len(row.weights) for row in rows)


class Solver(Protocol):
    """Turns a schedule into a plan."""

    @property
    def name(self) -> str:
        """Short name with what distinguishes it, as tables show it."""

    def plan(self, sigmas: Sequence[float]) -> Plan:
        """Return the evaluations on a valid schedule (see :func:`as_sigmas`)."""


def as_sigmas(sigmas: Sequence[float] | Tensor | np.ndarray[tuple[int], np.dtype[np.float64]]) -> tuple[float, ...]:
    """Check a schedule and return it as numbers.

    Args:
        sigmas: Noise levels, strictly falling, positive except that the last may be 0; at least two.

    Raises:
        InputError: It is not such a schedule; the message names the first offending place.

    Example:
        >>> as_sigmas([80, 1, 0])
        (80.0, 1.0, 0.0)
    """
    values = np.asarray(sigmas.detach().cpu() if isinstance(sigmas, Tensor) else sigmas, dtype=np.float64)
    if values.ndim != 1 or len(values) < 2:
        raise InputError(f"a schedule is a list of at least two noise levels, got shape {values.shape}")
    for index, value in enumerate(values.tolist()):
        if not math.isfinite(value) or value < 0 or (value == 0 and index < len(values) - 1):
            raise InputError(
                f"noise level {index} of the schedule is {value:g}; all must be positive (the last may be 0)"
            )
    falls = np.diff(values) < 0
    if not falls.all():
        index = int(np.argmin(falls))
        raise InputError(
            f"the schedule must fall strictly, but noise level {index + 1} ({values[index + 1]:g}) is not below "
            f"noise level {index} ({values[index]:g})"
        )
    return tuple(values.tolist())


def with_final_denoising(plan: Plan) -> Plan:
    """Append one evaluation at the last noise level whose output is the result (``denoise_to_zero``).

    Raises:
        InputError: The schedule ends at 0, where there is nothing left to remove.
    """
    if plan.sigmas[-1] == 0:
        raise InputError("denoise_to_zero needs a schedule that ends above 0; this one ends at 0 already")
    row = Update(0.0, (1.0,)) if plan.history == "denoised" else Update(1.0, (-1.0,))
    last = plan.calls[-1]._replace(hold=False)
    final = Call(plan.sigmas[-1], last.step + 1, None, row)
    return replace(plan, sigmas=(*plan.sigmas, 0.0), calls=(*plan.calls[:-1], last, final))


class Memory(NamedTuple):
    """What a solver carries from call to call.

    Shapes:
        base: [B, ...], the state at the start of the step.
        x: [B, ...], the point of the next evaluation.
        history: [depth, B, ...], a ring: call k writes its value into row k % depth.
    """

    base: Tensor
    x: Tensor
    history: Tensor


class Coefficients(NamedTuple):
    """The plan's numbers where the states are; row ``2k`` corrects, row ``2k + 1`` updates, both in ring order."""

    levels: Tensor  # [calls]
    weights: Tensor  # [2 * calls, depth]


def coefficients(plan: Plan, like: Tensor) -> Coefficients:
    """Bring a plan's numbers to the device and type of ``like``, once per schedule."""
    depth = plan.depth
    table = np.zeros((2 * len(plan.calls), depth))
    for k, call in enumerate(plan.calls):
        for offset, row in ((0, call.correct), (1, call.update)):
            for age, weight in enumerate(row.weights if row is not None else ()):
                if k - age < 0:
                    raise InputError(f"call {k} of the plan reads {age} values back, before the first")
                table[2 * k + offset, (k - age) % depth] = weight
    levels = torch.tensor([call.sigma for call in plan.calls], dtype=torch.float64)
    weights = torch.from_numpy(table)
    return Coefficients(levels.to(like.device, like.dtype), weights.to(like.device, like.dtype))


def begin(plan: Plan, x: Tensor) -> Memory:
    """Return the memory before the first call.

    Shapes:
        x: [B, ...], the state at the first noise level.
    """
    depth = 0 if is_one_step(plan) else plan.depth
    return Memory(x, x, x.new_zeros(depth, *x.shape))


def is_one_step(plan: Plan) -> bool:
    """Return whether every call only mixes its own point and its own output, so that no history is needed."""
    return plan.depth == 1 and plan.history == "denoised" and not any(call.hold for call in plan.calls)


def advance(plan: Plan, table: Coefficients, k: int, memory: Memory, denoised: Tensor) -> Memory:
    """Apply call ``k``: remember what the denoiser said and compute the next point of evaluation.

    The history's storage may be reused, so an earlier memory must not be read again; under autograd it is copied.

    Args:
        plan: What to do.
        table: The plan's numbers on the device.
        k: Number of the call, from 0.
        memory: Before the call.
        denoised: ``D(memory.x, sigma_k)``, [B, ...].

    Returns:
        The memory after it; ``x`` is where the next call evaluates, and the result after the last.
    """
    call = plan.calls[k]
    base, x, history = memory
    if is_one_step(plan):
        state = call.update.state  # state + weight = 1 for every one-step rule
        x = torch.lerp(denoised, base, state)
        return Memory(x, x, history)
    if torch.is_grad_enabled() and (x.requires_grad or denoised.requires_grad or history.requires_grad):
        history = history.clone()
    row = history[k % len(history)]
    if plan.history == "residual":
        if history.requires_grad or x.requires_grad or denoised.requires_grad:
            row.copy_(x - denoised)
        else:
            torch.sub(x, denoised, out=row)
    else:
        row.copy_(denoised)
    columns = history.flatten(1).t()
    if call.correct is not None:
        base = _mix(base, columns, table.weights[2 * k], call.correct.state)
    x = _mix(base, columns, table.weights[2 * k + 1], call.update.state)
    return Memory(base if call.hold else x, x, history)


def _mix(base: Tensor, columns: Tensor, weights: Tensor, state: float) -> Tensor:
    return torch.addmv(base.reshape(-1), columns, weights, beta=state).view(base.shape)
