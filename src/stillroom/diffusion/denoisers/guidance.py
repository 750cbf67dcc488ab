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
            with one row, or a number; or a mapping of those. Without it there is nothing to be guided away from, and
            the denoiser is called once.

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
        if self.scale == 1 or condition is None or self.unconditional is None:
            return self.denoiser(x, sigma, self.unconditional if condition is None else condition)
        levels = torch.cat([sigma, sigma]) if sigma.numel() > 1 else sigma
        both = self.denoiser(torch.cat([x, x]), levels, _join(self.unconditional, condition, x))
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


def _join(unconditional: Any, condition: Any, x: Tensor) -> Any:
    """Return the conditions of a doubled batch."""
    if isinstance(condition, Mapping) and isinstance(unconditional, Mapping):
        if condition.keys() != unconditional.keys():
            raise InputError(
                f"the condition has {', '.join(sorted(condition))} but the unconditional one has "
                f"{', '.join(sorted(unconditional))}"
            )
        return {name: _join(unconditional[name], condition[name], x) for name in condition}
    if not isinstance(condition, Tensor) or not isinstance(unconditional, Tensor):
        raise InputError(
            "the condition and the unconditional one must both be tensors, or both mappings, "
            f"got {type(condition).__name__} and {type(unconditional).__name__}"
        )
    rows = condition.reshape(1) if condition.ndim == 0 else condition
    without = unconditional.to(rows.device, rows.dtype)
    if without.ndim < rows.ndim:
        without = without.expand(1, *rows.shape[1:])
    if without.shape[1:] != rows.shape[1:] or {len(rows), len(without)} - {1, len(x)}:
        raise InputError(
            f"conditions {list(condition.shape)} and {list(unconditional.shape)} do not fit {len(x)} samples"
        )
    return torch.cat([part.expand(len(x), *part.shape[1:]) for part in (without, rows)])
