"""A trained classifier as a guard needs it: images in, features and logits out."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from stillroom.defense.contracts import Images, Observed
from stillroom.errors import InputError
from stillroom.models._trace import logits_of
from stillroom.models.signals import TapPaths
from stillroom.models.store import ModelCard, load_model
from stillroom.models.taps import find_taps

__all__ = ["Endpoint"]


class Endpoint:
    """A network in evaluation mode that returns, for images, its logits and the features they come from.

    It may be called from several threads at once.

    Args:
        model: The network; it is frozen.
        card: Its normalisation, classes and images' shape.
        taps: Where it is tapped; found by a dry run when not given.
        device: Where it runs.

    Raises:
        InputError: It has no final linear layer whose input could serve as features.
    """

    def __init__(
        self, model: nn.Module, card: ModelCard, *, taps: TapPaths | None = None, device: torch.device | str = "cpu"
    ) -> None:
        self._model = model.eval().requires_grad_(False)
        self.card, self.device = card, torch.device(device)
        self.taps = taps or find_taps(model, torch.zeros(2, *card.input_shape))
        if self.taps.classifier is None:
            raise InputError("the network has no final linear layer, whose input the guard watches")
        # Each thread has its own: a service asks from several, and no account may be judged by another's features.
        self._caught = caught = threading.local()

        # A function and no method: copies of the network are made without one of the endpoint.
        def catch(module: nn.Module, args: tuple[Any, ...]) -> None:
            caught.features = args[0]

        model.get_submodule(self.taps.classifier).register_forward_pre_hook(catch)
        self._model.to(self.device)
        shape = (1, -1, 1, 1)
        self._scale = 1 / (255 * torch.tensor(card.std, device=self.device).view(shape))
        self._shift = (torch.tensor(card.mean) / torch.tensor(card.std)).to(self.device).view(shape)

    @classmethod
    def load(cls, path: str | Path, *, device: torch.device | str = "cpu") -> Endpoint:
        """Load a run directory.

        Raises:
            InputError: It is missing, damaged, or its network has no final linear layer.
        """
        model, card = load_model(path)
        return cls(model, card, device=device)

    @property
    def model(self) -> nn.Module:
        """The network."""
        return self._model

    def __call__(self, images: Images) -> Observed:
        """Return features and logits of images [B, C, H, W], 8-bit or float32 in 0..1.

        Raises:
            InputError: The images have another shape than the network takes.
        """
        if images.shape[1:] != self.card.input_shape:
            raise InputError(f"images are {images.shape[1:]}, the network takes {self.card.input_shape}")
        pixels = torch.from_numpy(np.require(images, requirements=["C", "W"])).to(self.device)
        scale = self._scale if images.dtype == np.uint8 else 255 * self._scale
        with torch.inference_mode():
            logits = logits_of(self._model(pixels * scale - self._shift))
        features = self._caught.features
        del self._caught.features
        return Observed(features.float().cpu().numpy(), logits.float().cpu().numpy())

    def observe(self, images: Images, *, batch: int = 256) -> Observed:
        """Return features and logits of any number of images, batch by batch."""
        parts = [self(images[start : start + batch]) for start in range(0, len(images), batch)]
        if not parts:
            raise InputError("there are no images to observe")
        return Observed(np.concatenate([part.features for part in parts]), np.concatenate([p.logits for p in parts]))
