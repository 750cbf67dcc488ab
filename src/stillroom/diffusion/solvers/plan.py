"""A solver on a schedule is a plan: numbers fixed in advance, applied by one update rule.

Every deterministic solver here is linear in the states and denoiser outputs it has seen, and its coefficients depend on
the schedule alone. A solver therefore only computes those coefficients, in float64 on the host, and one function
applies them: :func:`advance` for ``sample`` as well as for the diffusers schedulers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from stillroom.errors import InputError

__all__ = [
    "JUMP",
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
    """``state * base + sum_j weights[j] * h_j``, where ``h_0`` is the newest value of the history.

    Without weights it is ``JUMP``: the denoiser's output itself, exactly, as every solver's step to noise level 0.
    """

    state: float
    weights: tuple[float, ...]


JUMP = Update(0.0, ())


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
    depth: int = field(init=False)  # number of values of the history that any update reads; 0: none is kept

    def __post_init__(self) -> None:
        if not self.calls:
            raise InputError("a plan needs at least one evaluation")
        rows = [row for call in self.calls for row in (call.correct, call.update) if row is not None]
        depth = max(len(row.weights) for row in rows)
        mixes = all(abs(row.state + sum(row.weights) - 1) < 1e-9 for row in rows if row.weights)
        if self.history == "denoised" and depth == 1 and mixes and not any(call.hold for call in self.calls):
            depth = 0  # a one-step rule takes a weighted mean of its own point and its own output
        object.__setattr__(self, "depth", depth)


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
    final = Call(plan.sigmas[-1], plan.calls[-1].step + 1, None, JUMP)
    return replace(plan, sigmas=(*plan.sigmas, 0.0), calls=(*plan.calls, final))


class Memory(NamedTuple):
    """What a solver carries from call to call.

    Shapes:
        base: [B, ...], the state at the start of the step of the latest call, corrected if that call corrects it.
        x: [B, ...], the point of the next evaluation.
        history: ``depth`` times [B, ...], a ring: call k writes its value into entry k % depth.
        columns: [elements, depth], the storage behind the history; ``None`` once autograd recorded a value of it.
    """

    base: Tensor
    x: Tensor
    history: tuple[Tensor, ...]
    columns: Tensor | None


class Coefficients(NamedTuple):
    """The plan's numbers where the states are, by call; the weights in ring order (``None``: none are needed)."""

    levels: tuple[Tensor, ...]  # []
    corrections: tuple[Tensor | None, ...]  # [depth]
    updates: tuple[Tensor | None, ...]  # [depth]


def coefficients(plan: Plan, like: Tensor) -> Coefficients:
    """Bring a plan's numbers to the device and type of ``like``, once per schedule.

    Raises:
        InputError: A call reads further back than the first call.
    """
    count, depth = len(plan.calls), plan.depth
    table = np.zeros((count, 2, depth))
    for k, call in enumerate(plan.calls):
        for row, update in enumerate((call.correct, call.update)):
            for age, weight in enumerate(update.weights if update is not None and depth else ()):
                if age > k:
                    raise InputError(f"call {k} of the plan reads {age} values back, before the first")
                table[k, row, (k - age) % depth] = weight
    levels = torch.tensor([call.sigma for call in plan.calls], dtype=torch.float64)
    rows = torch.from_numpy(table).to(like.device, like.dtype).reshape(2 * count, depth).unbind()
    return Coefficients(
        levels.to(like.device, like.dtype).unbind(),
        tuple(rows[2 * k] if call.correct is not None else None for k, call in enumerate(plan.calls)),
        tuple(rows[2 * k + 1] if depth and call.update.weights else None for k, call in enumerate(plan.calls)),
    )


def begin(plan: Plan, x: Tensor) -> Memory:
    """Return the memory before the first call.

    Shapes:
        x: [B, ...], the state at the first noise level.
    """
    if plan.depth == 0:
        return Memory(x, x, (), None)
    storage = x.new_zeros(plan.depth, *x.shape)
    return Memory(x, x, storage.unbind(), storage.flatten(1).t())


def advance(plan: Plan, table: Coefficients, k: int, memory: Memory, denoised: Tensor) -> Memory:
    """Apply call ``k``: remember what the denoiser said and compute the next point of evaluation.

    The history's storage is reused, so an earlier memory must not be read again; under autograd nothing is overwritten.

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
    x, history, columns = memory.x, memory.history, memory.columns
    base = memory.base if k and plan.calls[k - 1].hold else x
    if denoised.dtype != x.dtype:  # of a model in half precision
        denoised = denoised.to(x.dtype)
    if plan.depth == 0:
        if call.update.weights:  # their sum with the state is 1, see Plan
            denoised = torch.lerp(denoised, base, call.update.state)
        return Memory(base, denoised, history, columns)
    slot = k % plan.depth
    recorded = torch.is_grad_enabled() and (x.requires_grad or denoised.requires_grad)
    if recorded or columns is None:
        value = x - denoised if plan.history == "residual" else denoised
        history, columns = (*history[:slot], value, *history[slot + 1 :]), None
        matrix = torch.stack([entry.reshape(-1) for entry in history], 1)
    else:
        matrix = columns
        if plan.history == "residual":
            torch.sub(x, denoised, out=history[slot])
        else:
            history[slot].copy_(denoised)
    correction, update = table.corrections[k], table.updates[k]
    if call.correct is not None and correction is not None:
        base = torch.addmv(base.reshape(-1), matrix, correction, beta=call.correct.state).view(x.shape)
    if update is None:
        return Memory(base, denoised, history, columns)
    point = torch.addmv(base.reshape(-1), matrix, update, beta=call.update.state)
    return Memory(base, point.view(x.shape), history, columns)
