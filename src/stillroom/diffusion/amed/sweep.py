"""The losses of one batch of AMED's training, and the update each of them makes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor

from stillroom.diffusion.amed.predictor import Predictor
from stillroom.diffusion.amed.steps import Memory, Reader, Student, student_step
from stillroom.diffusion.denoiser import Denoiser

__all__ = ["sweep", "update"]


def sweep(
    denoiser: Denoiser,
    student: Student,
    predictor: Predictor,
    noise: Tensor,
    targets: Tensor,
    sigmas: Tensor,
    *,
    afs: bool,
    condition: Any = None,
    read: Reader | None = None,
    objective: Literal["steps", "final"] = "steps",
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the loss of one step after the other, and the state it leads to; the predictor may change in between.

    ``L_k = |x_{k+1} - y_{k+1}|^2 / B``. A single-step student starts each step at the teacher's state, a multistep one
    at its own, without gradient. With the objective ``final`` there is one loss, that of the last step.

    Shapes:
        noise: [B, ...], unit variance.
        targets: [N, B, ...], the teacher's states at the student's noise levels but the first.
        sigmas: [N + 1].
    """
    memory = Memory(noise * sigmas[0].to(noise.dtype))
    for k, target in enumerate(targets):
        memory, _ = student_step(
            denoiser, student, predictor, memory, k, sigmas, condition=condition, read=read, afs=afs
        )
        if objective == "final" and k < len(targets) - 1:
            continue
        yield (memory.x - target).square().sum() / len(noise), memory.x
        if student.single_step:
            memory = Memory(target)
        else:
            memory = Memory(
                memory.x.detach(),
                tuple(level.detach() for level in memory.levels),
                tuple(value.detach() for value in memory.values),
            )


def update(optimizer: torch.optim.Optimizer, loss: Tensor) -> Tensor:
    """Update the optimiser's parameters alone; NaN in the gradient becomes 0, infinity ±1e5, as in the paper's code.

    Returns:
        [], how many numbers of the gradient were not finite.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    gradients = torch.autograd.grad(loss, parameters)
    broken = torch.stack([gradient.isfinite().logical_not().sum() for gradient in gradients]).sum()
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = torch.nan_to_num(gradient, nan=0.0, posinf=1e5, neginf=-1e5)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return broken
