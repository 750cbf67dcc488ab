"""Guidance: push the samples of any denoiser towards a condition."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from stillroom.diffusion.denoiser import Denoiser, per_sample
from stillroom.errors import InputError

__all__ = ["ClassifierFreeGuidance", "ClassifierGuidance"]


class ClassifierFreeGuidance(nn.Module):
    """``D = D_u + w (D_c - D_u)``: away from the unconditional denoiser, in one call with a doubled batch.

    The unconditional half comes first. For preconditioned networks it is the same as guiding the network's output.
    With ``scale=1``, or no condition, the denoiser is called once with the batch as it is.

    Source: Ho, Salimans, Classifier-Free Diffusion Guidance, NeurIPS Workshop 2021.

    Args:
        denoiser: A denoiser that knows both.
        scale: The weight w; 1 is the conditional denoiser itself, 0 the unconditional one.
        unconditional: The condition that stands for none, in the form of conditions: a tensor with a row per sample,
            with one row for all, or of no dimension; or a mapping of those. Without it there is nothing to be guided
            away from, and the denoiser is called once.

    Raises:
        InputError: The scale is not finite; when called: the two conditions differ in form.

    Example:
        >>> shift = ClassifierFreeGuidance(lambda x, sigma, c: c[:, None] + 0 * x, 3.0, unconditional=torch.tensor(1.0))
        >>> shift(torch.zeros(1, 2), torch.tensor(1.0), torch.tensor([2.0]))
        tensor([[4., 4.]])
    """

    def __init__(self, denoiser: Denoiser, scale: float, *, unconditional: Any = None) -> None:
        super().__init__()
        if not torch.isfinite(torch.tensor(float(scale))):
            raise InputError(f"the guidance scale must be finite, got {scale}")
        self.denoiser, self.scale, self.unconditional = denoiser, float(scale), unconditional

    def forward(self, x: Tensor, sigma: Tensor, condition: Any = None, /) -> Tensor:
        """Return the guided denoised samples; see :class:`~stillroom.diffusion.denoiser.Denoiser`."""
        if self.unconditional is None or (self.scale == 1 and condition is not None):
            return self.denoiser(x, sigma, condition)
        unconditional = _rows(self.unconditional, len(x))
        if condition is None:
            return self.denoiser(x, sigma, unconditional)
        levels = torch.cat([sigma, sigma]) if sigma.numel() > 1 else sigma
        both = self.denoiser(torch.cat([x, x]), levels, _stack(unconditional, _rows(condition, len(x))))
        without, given = both.chunk(2)
        return torch.lerp(without, given, self.scale)


class ClassifierGuidance(nn.Module):
    """``D = D_0 + w s^2 grad_x log p(y | x; s)``: towards the class that a classifier of noisy samples sees.

    Source: Dhariwal, Nichol, Diffusion Models Beat GANs on Image Synthesis, NeurIPS 2021, section 4.2. ADM's networks
    are ``Preconditioned(network, vp)`` with ``vp = VP(epsilon_t=1e-3)``, the classifier
    ``lambda x, sigma: network(*network_input(vp, x, sigma))`` and ``limit=1``.

    Args:
        denoiser: The denoiser to guide; it gets the condition too.
        classifier: Called with ``(x, sigma)``; returns logits [B, K].
        scale: The weight w.
        limit: Clamp the result to -limit..limit.

    Raises:
        InputError: When called: there is no condition.

    Example:
        >>> guided = ClassifierGuidance(lambda x, sigma, c: 0 * x, lambda x, sigma: torch.cat([x, -x], dim=1), 2.0)
        >>> guided(torch.zeros(1, 1), torch.tensor(1.0), torch.tensor([0]))
        tensor([[2.]])
    """

    def __init__(
        self,
        denoiser: Denoiser,
        classifier: Callable[[Tensor, Tensor], Tensor],
        scale: float = 1.0,
        *,
        limit: float | None = None,
    ) -> None:
        super().__init__()
        self.denoiser, self.classifier, self.scale, self.limit = denoiser, classifier, float(scale), limit

    def forward(self, x: Tensor, sigma: Tensor, condition: Any = None, /) -> Tensor:
        """Return the guided denoised samples; ``condition`` holds the wanted classes, [B], int64."""
        if condition is None:
            raise InputError("classifier guidance needs the classes to guide to as condition")
        denoised = self.denoiser(x, sigma, condition)
        with torch.enable_grad():
            # A copy, so that the gradient is that of the classifier alone; it is a constant of the denoiser.
            point = x.detach().requires_grad_()
            logs = self.classifier(point, sigma).log_softmax(1)
            (gradient,) = torch.autograd.grad(logs.gather(1, condition.reshape(-1, 1)).sum(), point)
        denoised = denoised + self.scale * per_sample(sigma, x).square() * gradient
        return denoised if self.limit is None else denoised.clamp(-self.limit, self.limit)


def _rows(condition: Any, batch: int) -> Any:
    """Return the condition with one row per sample."""
    if isinstance(condition, Mapping):
        return {name: _rows(value, batch) for name, value in condition.items()}
    if not isinstance(condition, Tensor):
        raise InputError(f"conditions must be tensors or mappings of tensors, got {type(condition).__name__}")
    rows = condition.reshape(1) if condition.ndim == 0 else condition
    if len(rows) not in (1, batch):
        raise InputError(f"there are {batch} samples but {len(rows)} conditions")
    return rows.expand(batch, *rows.shape[1:])


def _stack(without: Any, given: Any) -> Any:
    """Return the conditions of a doubled batch."""
    if isinstance(given, dict) and isinstance(without, dict) and given.keys() == without.keys():
        return {name: _stack(without[name], given[name]) for name in given}
    if isinstance(given, Tensor) and isinstance(without, Tensor) and given.shape == without.shape:
        return torch.cat([without.to(given.device, given.dtype), given])
    raise InputError(
        f"the condition ({_form(given)}) and the one that stands for none ({_form(without)}) must have the same form"
    )


def _form(condition: Any) -> str:
    return ", ".join(sorted(condition)) if isinstance(condition, dict) else f"shape {list(condition.shape)}"
