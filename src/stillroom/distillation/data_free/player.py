"""A generator trained across rounds, with its optimiser."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from stillroom.distillation.data_free.generator import Generator
from stillroom.training.evaluate import evaluation_mode

__all__ = ["Player"]


class Player:
    """A generator with its optimiser; no module, so that the student's optimiser does not reach it.

    Args:
        generator: The generator.
        lr: Adam's learning rate.
    """

    def __init__(self, generator: Generator, *, lr: float) -> None:
        self.generator = generator
        self.optimizer = torch.optim.Adam(generator.parameters(), lr=lr)

    def step(self, z: Tensor, objective: Callable[[Tensor], Tensor]) -> None:
        """Do one update on the objective of the images made from latent vectors."""
        self.generator.train()
        loss = objective(self.generator(z))
        self.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        self.optimizer.step()

    def images(self, z: Tensor) -> Tensor:
        """Return images in 0..1, in evaluation mode and without graph."""
        with evaluation_mode(self.generator):
            made: Tensor = self.generator(z)
        return made

    def state(self) -> dict[str, Any]:
        """Return weights and moments for a checkpoint."""
        return {"generator": self.generator.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load(self, state: dict[str, Any]) -> None:
        """Take up what :meth:`state` returned."""
        self.generator.load_state_dict(state["generator"])
        self.optimizer.load_state_dict(state["optimizer"])
