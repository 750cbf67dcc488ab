"""The tiny network of AMED: from a feature and two noise levels to where and how to take a step."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stillroom.errors import InputError

__all__ = ["Prediction", "Predictor"]


class Prediction(NamedTuple):
    """What a step from noise level s to t takes; every tensor is [B, 1], or [1, 1] where all samples share it.

    Args:
        r: The second evaluation lies at ``t^r s^(1-r)``; strictly between 0 and 1.
        scale_dir: Factor of the direction.
        scale_time: Factor of the noise level that the second evaluation is told.
    """

    r: Tensor
    scale_dir: Tensor
    scale_time: Tensor


class Predictor(nn.Module):
    """Predicts the intermediate noise level and two scales of a step, for every sample.

    With feature f and the embeddings E(s), E(t) of both noise levels, ``o = [W_2 silu(W_1 f), E(s), E(t)]`` and
    ``r = sigmoid(w_r o)``; ``scale_dir`` is ``1 + c (2 sigmoid(w_d o) - 1)``, between 1 - c and 1 + c, and so is
    ``scale_time`` around 1. A scale whose c is 0 has no head and is 1. About 9,000 parameters.

    Source: Zhou, Chen, Wang, Chen, Fast ODE-based Sampling for Diffusion Models in Around 5 Steps, CVPR 2024, section
    4.2 and appendix.

    Args:
        scale_dir: Largest deviation of the direction's factor from 1.
        scale_time: Largest deviation of the noise level's factor from 1.
        inputs: Elements of the feature that are used; maps of another size are pooled to it.
        hidden: Width of the feature's hidden layer.
        outputs: Numbers the feature is condensed to.
        noise_channels: Width of the embedding of a noise level, even.
        generator: Draws the initial weights.

    Shapes:
        feature: [B, C, H, W] (its mean over channels is taken), [B, H, W], [B, K], or ``None``, which stands for zeros.
        s, t: [] or [1], the noise levels.
        Returns a :class:`Prediction`, [B, 1] each; [1, 1] without a feature.

    Raises:
        InputError: A value is out of its range.

    Example:
        >>> predictor = Predictor(scale_dir=0.01)
        >>> prediction = predictor(torch.zeros(3, 16, 8, 8), torch.tensor(80.0), torch.tensor(2.0))
        >>> prediction.r.shape, prediction.scale_time.shape
        (torch.Size([3, 1]), torch.Size([3, 1]))
    """

    def __init__(
        self,
        *,
        scale_dir: float = 0.01,
        scale_time: float = 0.0,
        inputs: int = 64,
        hidden: int = 128,
        outputs: int = 4,
        noise_channels: int = 8,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        for name, scale in (("scale_dir", scale_dir), ("scale_time", scale_time)):
            if not 0 <= scale < 1:
                raise InputError(f"amed.{name} is {scale}; it must be at least 0 and below 1")
        for name, size in (("inputs", inputs), ("hidden", hidden), ("outputs", outputs)):
            if size < 1:
                raise InputError(f"amed.{name} is {size}; it must be at least 1")
        if noise_channels < 4 or noise_channels % 2:
            raise InputError(f"amed.noise_channels is {noise_channels}; it must be even and at least 4")
        self.scale_dir, self.scale_time = float(scale_dir), float(scale_time)
        self.inputs, self.hidden, self.outputs, self.noise_channels = inputs, hidden, outputs, noise_channels
        # The names are those of the published checkpoints.
        joined = outputs + 2 * noise_channels
        self.map_layer0 = nn.Linear(noise_channels, noise_channels)
        self.enc_layer0 = nn.Linear(inputs, hidden)
        self.enc_layer1 = nn.Linear(hidden, outputs)
        self.fc_r = nn.Linear(joined, 1)
        self.fc_scale_dir = nn.Linear(joined, 1) if scale_dir else None
        self.fc_scale_time = nn.Linear(joined, 1) if scale_time else None
        for layer in self.children():
            assert isinstance(layer, nn.Linear)
            nn.init.normal_(layer.weight, std=layer.in_features**-0.5, generator=generator)
            nn.init.zeros_(layer.bias)
        nn.init.xavier_uniform_(self.map_layer0.weight, generator=generator)

    def start_plain(self) -> None:
        """Make it say ``r = 1/2`` and scales of 1 to begin with, so that wide scales start at the student's solver."""
        for head in (self.fc_r, self.fc_scale_dir, self.fc_scale_time):
            if head is not None:
                nn.init.zeros_(head.weight)

    @property
    def options(self) -> dict[str, float | int]:
        """What rebuilds the network."""
        names = ("scale_dir", "scale_time", "inputs", "hidden", "outputs", "noise_channels")
        return {name: getattr(self, name) for name in names}

    def forward(self, feature: Tensor | None, s: Tensor, t: Tensor) -> Prediction:
        like = self.fc_r.weight
        flat = like.new_zeros(1, self.inputs) if feature is None else self._flat(feature.to(like.dtype))
        condensed = self.enc_layer1(F.silu(self.enc_layer0(flat)))
        levels = [self._embed(level).expand(len(flat), -1) for level in (s, t)]
        joined = torch.cat([condensed, *levels], dim=1)
        r = torch.sigmoid(self.fc_r(joined))
        return Prediction(
            r,
            _scale(self.fc_scale_dir, joined, self.scale_dir),
            _scale(self.fc_scale_time, joined, self.scale_time),
        )

    def _flat(self, feature: Tensor) -> Tensor:
        """Bring a feature to [B, inputs]."""
        if feature.ndim < 2:
            raise InputError(f"a feature must be [B, ...], got {list(feature.shape)}")
        if feature.ndim >= 4:
            feature = feature.mean(1)
        if feature[0].numel() == self.inputs:
            return feature.flatten(1)
        side = math.isqrt(self.inputs)
        if feature.ndim == 3 and side**2 == self.inputs:
            return F.adaptive_avg_pool2d(feature[:, None], side).flatten(1)
        return F.adaptive_avg_pool1d(feature.flatten(1)[:, None], self.inputs)[:, 0]

    def _embed(self, level: Tensor) -> Tensor:
        """Embed a noise level (not its logarithm), [1, noise_channels]."""
        weight, half = self.map_layer0.weight, self.noise_channels // 2
        exponent = torch.arange(half, dtype=torch.float32, device=weight.device) / (half - 1)
        angles = level.to(weight).reshape(1, 1) * (1 / 10000**exponent).to(weight.dtype)
        embedded: Tensor = F.silu(self.map_layer0(torch.cat([angles.sin(), angles.cos()], dim=1)))
        return embedded


def _scale(head: nn.Linear | None, joined: Tensor, size: float) -> Tensor:
    if head is None:
        return joined.new_ones(len(joined), 1)
    return 2 * size * torch.sigmoid(head(joined)) + (1 - size)
