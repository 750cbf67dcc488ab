"""The one protocol of all models: a denoiser in the EDM convention, and a loaded model with what sampling must know."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

__all__ = ["Denoiser", "DenoisingModel", "per_sample"]


class Denoiser(Protocol):
    """Estimates the clean sample from a noisy one, ``x = x0 + sigma * z`` with ``z ~ N(0, I)``.

    The probability-flow ODE is ``dx/dsigma = (x - D(x, sigma)) / sigma`` (Karras et al., NeurIPS 2022, eq. 1 and 3).
    """

    def __call__(self, x: Tensor, sigma: Tensor, condition: Any = None, /) -> Tensor:
        """Return the denoised samples.

        Shapes:
            x: [B, ...].
            sigma: [], [1], [B] or broadcastable [B, 1, ..., 1], the noise level, positive.
            condition: Whatever the model is conditioned on, or ``None``.
            Returns [B, ...].
        """


@dataclass(frozen=True, kw_only=True)
class DenoisingModel:
    """A denoiser together with what sampling from it must know.

    Args:
        denoiser: The model.
        shape: Shape of one sample of the denoiser (of the latent, for latent models).
        sigma_min: Smallest noise level the model knows.
        sigma_max: Largest one.
        name: What it is called in tables.
        classes: Number of classes of a class-conditional model (its condition is then [B] int64), else 0.
        decode: Turns denoised samples [B, ...] into images [B, C, H, W] in -1..1; identity for pixel models.
        sigmas: The discrete noise levels a model was trained on, rising, or ``None``.
        feature: A hook that returns the network's bottleneck feature map of its latest call, or ``None``.
        extra: Facts worth keeping: data, training, source.
    """

    denoiser: Denoiser
    shape: tuple[int, ...]
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    name: str = "model"
    classes: int = 0
    decode: Callable[[Tensor], Tensor] | None = None
    sigmas: tuple[float, ...] | None = None
    feature: Callable[[], Tensor] | None = None
    extra: dict[str, Any] = field(default_factory=dict)


def per_sample(sigma: Tensor, x: Tensor) -> Tensor:
    """Reshape noise levels so that they broadcast over samples: [B, 1, ..., 1], or [1, ..., 1] for a shared one.

    Example:
        >>> import torch
        >>> per_sample(torch.tensor([1.0, 2.0]), torch.zeros(2, 3, 4, 4)).shape
        torch.Size([2, 1, 1, 1])
    """
    return sigma.to(x.dtype).reshape(-1, *(1,) * (x.ndim - 1))
