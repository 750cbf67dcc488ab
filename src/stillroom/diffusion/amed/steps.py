"""The step rules of AMED: two evaluations a step, the second one where the predictor says.

Every half of a step mixes the state and the values the denoiser has returned, ``state * x + sum_j weights[j] h_j``.
Here the weights are computed, one number a sample; where all samples share them, the sampler can turn them into a plan.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from stillroom.diffusion.amed.predictor import Prediction, Predictor
from stillroom.diffusion.denoiser import Denoiser, per_sample
from stillroom.diffusion.solvers.adams_bashforth import EVEN
from stillroom.diffusion.solvers.dpmpp import final_order
from stillroom.diffusion.thresholding import dynamic_threshold
from stillroom.errors import InputError, unknown_name

__all__ = ["RULES", "Memory", "Mix", "Student", "between", "evaluations", "first_half", "second_half", "student_step"]

RULES = ("amed", "euler", "dpm2", "ipndm", "dpmpp")
ORDERS = {"ipndm": 4, "dpmpp": 3}  # the highest of the rules that have one
Reader = Callable[[Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class Student:
    """How a step from noise level s to t uses its two evaluations, at s and at ``m = t^r s^(1-r)``.

    With ``e = eps(x, s)``, ``x~`` the state at m and ``d = (x~ - D(x~, a m)) / m``, where r, the scale c of the
    direction and the scale a of the noise level come from the predictor:

    * ``amed`` (AMED-Solver): ``x~ = x + (m - s) e``, ``x' = x + c (t - s) d``;
    * ``euler`` (as all below, AMED-Plugin): the same x~, ``x' = x~ + c (t - m) d``;
    * ``dpm2``: the same x~, ``x' = x + c (t - s) (d / (2r) + (1 - 1/(2r)) e)``;
    * ``ipndm``: both halves are steps of iPNDM; ``dpmpp``: of DPM-Solver++ on the grid of all halves; c scales what the
      second one adds.

    Source: Zhou, Chen, Wang, Chen, Fast ODE-based Sampling for Diffusion Models in Around 5 Steps, CVPR 2024, section
    4.1 (AMED-Solver, eq. 10 to 12) and 4.3 (AMED-Plugin).

    Args:
        rule: One of the above.
        order: Highest order of ``ipndm`` (1 to 4) and ``dpmpp`` (1 to 3).
        predict: For ``dpmpp``, what its polynomial stands for: ``denoised`` samples or ``noise``.
        lower_order_final: For ``dpmpp``, fall to order 1 in the last half step.
        threshold: For ``dpmpp`` on denoised samples, dynamic thresholding of what the denoiser returns.

    Raises:
        InputError: An option is out of its range, or does not concern the rule.

    Example:
        >>> Student(rule="ipndm", order=4).name
        'amed-ipndm-4'
    """

    rule: Literal["amed", "euler", "dpm2", "ipndm", "dpmpp"] = "amed"
    order: int = 3
    predict: Literal["denoised", "noise"] = "denoised"
    lower_order_final: bool = True
    threshold: bool = False

    def __post_init__(self) -> None:
        if self.rule not in RULES:
            raise unknown_name("AMED student", self.rule, RULES)
        highest = ORDERS.get(self.rule, 4)
        if not 1 <= self.order <= highest:
            raise InputError(f"order of the AMED student {self.rule} is {self.order}; it must be from 1 to {highest}")
        if self.predict not in ("denoised", "noise"):
            raise unknown_name("prediction", self.predict, ("denoised", "noise"))
        if self.threshold and not self.keeps_denoised:
            raise InputError("threshold changes denoised samples: it needs the student dpmpp with predict denoised")

    @property
    def name(self) -> str:
        """Name in tables."""
        if self.rule == "dpmpp":
            return f"amed-dpmpp-{self.order}m" + ("-noise" if self.predict == "noise" else "")
        return {"amed": "amed", "ipndm": f"amed-ipndm-{self.order}"}.get(self.rule, f"amed-{self.rule}")

    @property
    def keeps_denoised(self) -> bool:
        """Whether the history holds D; otherwise it holds x - D."""
        return self.rule == "dpmpp" and self.predict == "denoised"

    @property
    def holds(self) -> bool:
        """Whether the second half starts again from the state at s."""
        return self.rule in ("amed", "dpm2")

    @property
    def single_step(self) -> bool:
        """Whether a step needs nothing of the steps before it."""
        return self.rule in ("amed", "euler", "dpm2")

    @property
    def depth(self) -> int:
        """Number of values of the history that are kept; both of the step itself always are."""
        return 2 if self.single_step else max(2, self.order)


class Mix(NamedTuple):
    """``state * x + sum_j weights[j] * h_j``, h_0 the newest; numbers are [] or [B], and no state is 1."""

    state: Tensor | None
    weights: tuple[Tensor, ...]


class Memory(NamedTuple):
    """What a student carries from step to step, newest first.

    Shapes:
        x: [B, ...].
        levels: [] or [B] each, the noise levels of the history.
        values: [B, ...] each.
    """

    x: Tensor
    levels: tuple[Tensor, ...] = ()
    values: tuple[Tensor, ...] = ()


def between(s: Tensor, t: Tensor, r: Tensor) -> Tensor:
    """Return ``t^r s^(1-r)``."""
    return t**r * s ** (1 - r)


def first_half(student: Student, k: int, steps: int, levels: Sequence[Tensor], m: Tensor) -> Mix:
    """Return how the state at m follows from that at ``s = levels[0]``, in step k of ``steps``.

    Args:
        student: The rule.
        k: Number of the step, from 0.
        steps: Number of steps.
        levels: Noise levels of the history, newest first.
        m: The intermediate noise level.
    """
    if student.rule == "dpmpp":
        return _dpmpp(student, 2 * k, 2 * steps, levels, m)
    order = min(student.order, len(levels)) if student.rule == "ipndm" else 1
    return Mix(None, _adams(m - levels[0], order, levels))


def second_half(
    student: Student, k: int, steps: int, levels: Sequence[Tensor], t: Tensor, r: Tensor, scale_dir: Tensor
) -> Mix:
    """Return how the state at t follows from that at ``m = levels[0]``, or from that at ``s`` if the student holds.

    Args:
        student: The rule.
        k: Number of the step, from 0.
        steps: Number of steps.
        levels: Noise levels of the history, newest first; the second one is s.
        t: The next noise level.
        r: Where m lies.
        scale_dir: Factor of the direction.
    """
    m, s = levels[:2]
    if student.rule == "amed":
        return Mix(None, (scale_dir * (t - s) / m,))
    if student.rule == "dpm2":
        share, h = 1 / (2 * r), scale_dir * (t - s)
        return Mix(None, (h * share / m, h * (1 - share) / s))
    if student.rule == "dpmpp":
        return _dpmpp(student, 2 * k + 1, 2 * steps, levels, t, scale_dir)
    order = min(student.order, len(levels)) if student.rule == "ipndm" else 1
    return Mix(None, _adams(scale_dir * (t - m), order, levels))


def _adams(h: Tensor, order: int, levels: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Return iPNDM's weights of x - D instead of (x - D) / sigma."""
    return tuple(h * weight / levels[j] for j, weight in enumerate(EVEN[order - 1]))


def _dpmpp(
    student: Student, half: int, halves: int, levels: Sequence[Tensor], t: Tensor, scale: Tensor | float = 1.0
) -> Mix:
    """Return a step of DPM-Solver++ (published third order) from ``levels[0]`` to t; see ``solvers.DPMpp``."""
    order = final_order(student.order, half, halves) if student.lower_order_final else min(student.order, half + 1)
    sign = -1 if student.predict == "denoised" else 1
    h = (levels[0] / t).log()
    phi1 = torch.expm1(sign * h)
    weights = [sign * phi1]  # of m_0, m_1, m_2
    if order > 1:
        r0 = (levels[1] / levels[0]).log() / h
        if order == 2:
            weights = [weights[0] * (1 + 1 / (2 * r0)), weights[0] / (-2 * r0)]
        else:
            r1 = (levels[2] / levels[1]).log() / h
            phi2 = phi1 / h - sign
            phi3 = sign * (phi2 / h - 0.5)
            bend = [1 / r0, -1 / r0 - 1 / r1, 1 / r1]  # (r_0 + r_1) times the second divided difference
            second, third = [1 / r0, -1 / r0, torch.zeros_like(h)], [value / (r0 + r1) for value in bend]
            second = [p + r0 * q for p, q in zip(second, third, strict=True)]
            weights = [phi2 * p + phi3 * q for p, q in zip(second, third, strict=True)]
            weights[0] = weights[0] + sign * phi1
    if student.predict == "denoised":
        return Mix(t / levels[0], tuple(scale * weight for weight in weights))
    return Mix(None, tuple(-t * scale * weight / levels[j] for j, weight in enumerate(weights)))


def student_step(
    denoiser: Denoiser,
    student: Student,
    predictor: Predictor,
    memory: Memory,
    k: int,
    sigmas: Tensor,
    *,
    condition: Any = None,
    read: Reader | None = None,
    afs: bool = False,
) -> tuple[Memory, Prediction]:
    """Do step k: two evaluations, of which ``afs`` saves the first one where k is 0.

    The first evaluation and the feature carry no gradient unless the state does.

    Args:
        denoiser: The model.
        student: The rule.
        predictor: Says where the second evaluation lies.
        memory: State and history at noise level k.
        k: Number of the step, from 0.
        sigmas: The noise levels, [N + 1], in float64 where the device knows it.
        condition: Passed to every evaluation.
        read: Returns what the predictor sees, [B, ...], given what the first evaluation returned; zeros without, and at
            ``afs``.
        afs: Analytical first step.

    Returns:
        State and history at noise level k + 1, and what the predictor said.
    """
    running = evaluations(student, predictor, memory, k, sigmas, read=read, afs=afs)
    x, sigma = next(running)
    if not (afs and k == 0):
        with torch.set_grad_enabled(x.requires_grad and torch.is_grad_enabled()):
            denoised = denoiser(x, sigma, condition)
        x, sigma = running.send(denoised)
    denoised = denoiser(x, sigma, condition)
    try:
        running.send(denoised)
    except StopIteration as done:
        result: tuple[Memory, Prediction] = done.value
    return result


def evaluations(
    student: Student,
    predictor: Predictor,
    memory: Memory,
    k: int,
    sigmas: Tensor,
    *,
    read: Reader | None = None,
    afs: bool = False,
) -> Generator[tuple[Tensor, Tensor], Tensor, tuple[Memory, Prediction]]:
    """Do step k for whoever has the model: yields where it is to be evaluated, and is sent the denoised samples.

    The arguments and what it returns are those of :func:`student_step`.

    Yields:
        Point [B, ...] and noise level, [] or [B], of an evaluation.
    """
    steps, s, t, x = len(sigmas) - 1, sigmas[k], sigmas[k + 1], memory.x
    f = None
    if afs and k == 0:
        denoised = x * (1 - s / (1 + s**2).sqrt()).to(x.dtype)
    else:
        denoised = yield x, s.to(x.dtype)
        if read is not None:
            f = read(denoised.detach())
    prediction = predictor(f, s, t)
    r, scale_dir, scale_time = (value[:, 0].to(sigmas.dtype) for value in prediction)
    m = between(s, t, r)
    memory = _remember(student, memory, s, x, denoised)
    middle = _mix(x, first_half(student, k, steps, memory.levels, m), memory)
    denoised = yield middle, (scale_time * m).to(x.dtype)
    memory = _remember(student, memory, m, middle, denoised)
    start = x if student.holds else middle
    x = _mix(start, second_half(student, k, steps, memory.levels, t, r, scale_dir), memory)
    return memory._replace(x=x), prediction


def _remember(student: Student, memory: Memory, level: Tensor, x: Tensor, denoised: Tensor) -> Memory:
    if student.threshold:
        denoised = dynamic_threshold(denoised)
    value = denoised if student.keeps_denoised else x - denoised
    keep = student.depth - 1
    return Memory(memory.x, (level, *memory.levels[:keep]), (value, *memory.values[:keep]))


def _mix(x: Tensor, mix: Mix, memory: Memory) -> Tensor:
    result = x if mix.state is None else per_sample(mix.state, x) * x
    for weight, value in zip(mix.weights, memory.values[: len(mix.weights)], strict=True):
        result = torch.addcmul(result, per_sample(weight, x), value)
    return result
