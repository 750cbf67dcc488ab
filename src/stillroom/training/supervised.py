"""The plain task: cross-entropy on the labels (teachers, and students alone)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stillroom.data.batch import Batch

__all__ = ["Supervised"]


class Supervised(nn.Module):
    """Train a network on the labels alone, ``L = CE(z, y)``, computed in at least float32.

    Args:
        model: The network; it maps images [B, C, H, W] to logits [B, K].

    Example:
        >>> task = Supervised(nn.Sequential(nn.Flatten(), nn.Linear(4, 3)))
        >>> batch = Batch(torch.zeros(2, 1, 2, 2), torch.tensor([0, 2]), torch.arange(2))
        >>> sorted(task(batch))
        ['loss', 'output']
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return ``loss`` and the detached logits as ``output``."""
        logits = self.predict(batch.images)
        at_least_float32 = torch.promote_types(logits.dtype, torch.float32)
        return {"loss": F.cross_entropy(logits.to(at_least_float32), batch.target), "output": logits.detach()}

    def predict(self, images: Tensor) -> Tensor:
        """Return the network's logits [B, K]."""
        logits: Tensor = self.model(images)
        return logits

    def start_epoch(self, epoch: int) -> None:
        """Do nothing: this objective is the same in every epoch."""
