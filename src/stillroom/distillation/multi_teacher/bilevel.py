"""The gradient of a loss after several SGD steps with respect to what the steps' losses depended on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Lookahead", "look_ahead"]

Tensors = Mapping[str, Tensor]


class Lookahead(NamedTuple):
    """What :func:`look_ahead` returns."""

    gradients: dict[str, Tensor]  # of the last loss with respect to phi
    parameters: dict[str, Tensor]  # after the last step
    inner_losses: list[Tensor]  # before each inner step
    outer_after: Tensor  # the outer loss after the outer step


def look_ahead(
    inner: Callable[[Tensors, Tensors], Tensor],
    outer: Callable[[Tensors], Tensor],
    parameters: Tensors,
    momentum_buffers: Tensors,
    phi: Tensors,
    *,
    lr: float,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    inner_steps: int = 2,
) -> Lookahead:
    """Take SGD steps on a loss that depends on ``phi``, one on the outer loss, and differentiate the result.

    H. Zhang, D. Chen, C. Wang, "Adaptive Multi-Teacher Knowledge Distillation with Meta-Learning", ICME 2023:
    ``inner_steps`` times ``v ← momentum · v + ∂inner(p, phi)/∂p + weight_decay · p`` and ``p ← p − lr · v``, once the
    same with ``outer(p)``, then ``∂outer(p)/∂phi`` through all of it. Nothing that is passed in changes. A parameter a
    loss does not touch has the gradient 0, so momentum and decay still move it.

    The steps' graphs are kept and differentiated once; an explicit reverse pass gives the same numbers but has to
    evaluate every loss and its gradient again.

    Args:
        inner: Loss of parameters and phi.
        outer: Loss of parameters.
        parameters: Where the steps start.
        momentum_buffers: SGD's ``v`` by name; a missing one is 0.
        phi: What to differentiate by.
        lr: Learning rate of the steps.
        momentum: Of the steps, without dampening and not Nesterov's.
        weight_decay: Of the steps.
        inner_steps: Steps on the inner loss.

    Example:
        >>> there = look_ahead(
        ...     lambda p, phi: 0.5 * (p["w"] - phi["goal"]) ** 2,
        ...     lambda p: p["w"], {"w": torch.tensor(0.0)}, {}, {"goal": torch.tensor(1.0)}, lr=0.1, inner_steps=1)
        >>> there.gradients["goal"], there.parameters["w"]
        (tensor(0.1000), tensor(0.))
    """
    phi = {name: value.detach().requires_grad_() for name, value in phi.items()}
    now = {name: value.detach().requires_grad_() for name, value in parameters.items()}
    velocity = {name: momentum_buffers[name].detach() for name in parameters if name in momentum_buffers}
    losses: list[Tensor] = []
    with torch.enable_grad():
        for step in range(inner_steps + 1):
            loss = inner(now, phi) if step < inner_steps else outer(now)
            losses.append(loss)
            slopes = torch.autograd.grad(loss, list(now.values()), create_graph=True, materialize_grads=True)
            moved = {}
            for (name, value), slope in zip(now.items(), slopes, strict=True):
                change = slope.add(value, alpha=weight_decay) if weight_decay else slope
                if momentum and name in velocity:
                    change = change.add(velocity[name], alpha=momentum)
                velocity[name] = change
                moved[name] = value.add(change, alpha=-lr)
            now = moved
        final = outer(now)
        gradients = torch.autograd.grad(final, list(phi.values()), materialize_grads=True)
    return Lookahead(
        dict(zip(phi, gradients, strict=True)),
        {name: value.detach() for name, value in now.items()},
        [loss.detach() for loss in losses[:-1]],
        final.detach(),
    )
