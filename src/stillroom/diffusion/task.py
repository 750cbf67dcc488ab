"""What ``stillroom diffusion train`` trains: EDM's denoising loss with a moving average of the weights."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from stillroom.data.batch import Batch
from stillroom.diffusion.network import EDMDenoiser, conditioning_mask
from stillroom.errors import InputError
from stillroom.training.ema import EMA
from stillroom.training.loop import supervised_step
from stillroom.training.recipe import Recipe

if TYPE_CHECKING:
    from lightning_fabric import Fabric

__all__ = ["DenoisingTask", "NoiseOptions", "denoising_step", "edm_loss"]


@dataclass(frozen=True, kw_only=True)
class NoiseOptions:
    """The noise a model is trained on, as in Karras et al., NeurIPS 2022, table 1.

    Args:
        mean: Mean of ln sigma.
        std: Standard deviation of ln sigma.
        label_dropout: Share of the labels a class-conditional model is not shown (for classifier-free guidance).
        ema: Decay of the moving average of the weights, per step.

    Raises:
        InputError: A value is out of its range.
    """

    mean: float = -1.2
    std: float = 1.2
    label_dropout: float = 0.1
    ema: float = 0.999

    def __post_init__(self) -> None:
        def require(holds: bool, name: str, expected: str) -> None:
            if not holds:
                raise InputError(f"noise.{name} is {getattr(self, name)!r}; it must be {expected}")

        require(math.isfinite(self.mean), "mean", "finite")
        require(0 < self.std < math.inf, "std", "positive and finite")
        require(0 <= self.label_dropout < 1, "label_dropout", "at least 0 and below 1")
        require(0 <= self.ema < 1, "ema", "at least 0 and below 1")


def edm_loss(denoised: Tensor, clean: Tensor, sigma: Tensor, sigma_data: float) -> Tensor:
    """Return EDM's weighted denoising error (Karras et al., NeurIPS 2022, eq. 2 with the weight of table 1).

    ``mean over samples and pixels of (sigma^2 + sd^2) / (sigma sd)^2 (D(x) - y)^2``.

    Shapes:
        denoised, clean: [B, ...]; sigma: [B].
        Returns [].

    Example:
        >>> edm_loss(torch.ones(2, 3), torch.zeros(2, 3), torch.ones(2), 1.0)
        tensor(2.)
    """
    weight = (sigma**2 + sigma_data**2) / (sigma * sigma_data) ** 2
    return (weight * (denoised - clean).square().flatten(1).mean(1)).mean()


class DenoisingTask(nn.Module):
    """Trains a denoiser on images and keeps the moving average that is deployed.

    Args:
        denoiser: The model.
        noise: Noise levels, label dropout and decay of the average.
    """

    def __init__(self, denoiser: EDMDenoiser, noise: NoiseOptions) -> None:
        super().__init__()
        self.denoiser, self.noise = denoiser, noise
        self.ema = EMA(denoiser, noise.ema)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return the denoising loss of the batch, noised at random levels.

        Shapes:
            batch.images: [B, C, H, W] in -1..1.
        """
        clean, denoiser = batch.images, self.denoiser
        sigma = torch.exp(torch.randn(len(clean), device=clean.device) * self.noise.std + self.noise.mean)
        noisy = torch.addcmul(clean, sigma[:, None, None, None], torch.randn_like(clean))
        label = None
        if denoiser.classes:
            label = conditioning_mask(batch.target, self.noise.label_dropout, denoiser.classes)
        return {"loss": edm_loss(denoiser(noisy, sigma, label).float(), clean, sigma, denoiser.options.sigma_data)}

    def predict(self, images: Tensor) -> Tensor:
        """Return images with noise of level 1 removed by the average (the contract's counterpart of logits)."""
        denoised: Tensor = self.ema.module(images, images.new_ones(()))
        return denoised

    def start_epoch(self, epoch: int) -> None:
        """Nothing changes from epoch to epoch."""


def denoising_step(
    task: nn.Module, optimizer: Optimizer, batch: Batch, fabric: Fabric, recipe: Recipe
) -> dict[str, Tensor]:
    """Do one update and let the moving average follow."""
    parts = supervised_step(task, optimizer, batch, fabric, recipe)
    inner = next(module for module in task.modules() if isinstance(module, DenoisingTask))  # within any wrapper
    inner.ema.update(inner.denoiser)
    return parts
