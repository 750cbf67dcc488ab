"""Training the auxiliary head beside the student."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stillroom.distillation.data_free.generator import reinitialise
from stillroom.distillation.data_free.head import AuxiliaryHead
from stillroom.distillation.data_free.rotation import rotation_batch
from stillroom.training.evaluate import evaluation_mode

__all__ = ["Auxiliary"]


class Auxiliary:
    """The auxiliary head with its own optimiser; no module, so that the student's optimiser does not reach it.

    Args:
        head: The head.
        lr: SGD's learning rate, constant.
        momentum: Its momentum.
        weight_decay: Its weight decay.
    """

    def __init__(
        self, head: AuxiliaryHead, *, lr: float = 0.1, momentum: float = 0.9, weight_decay: float = 1e-4
    ) -> None:
        self.head = head
        self.optimizer = torch.optim.SGD(head.parameters(), lr=lr, momentum=momentum, weight_decay=weight_decay)

    def restart(self, generator: torch.Generator) -> None:
        """Draw the head's weights anew and forget the momentum, as every round does."""
        reinitialise(self.head, generator)
        self.optimizer.state.clear()

    def step(self, student: nn.Module, images: Tensor, target: Tensor) -> Tensor:
        """Do one update on ``CE(h(sg[f_S(rot(x))]), 4y + k)``, the student in evaluation mode and untouched.

        Args:
            student: Images to signals with the pooled features.
            images: Normalised images [B, C, H, H].
            target: [B], int64.

        Returns:
            The loss before the update, without graph.
        """
        turned, joint = rotation_batch(images, target)
        assert joint is not None
        with evaluation_mode(student):
            features = student(turned).pooled
        loss = F.cross_entropy(self.head(features.float() if features.dtype != torch.float64 else features), joint)
        self.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        self.optimizer.step()
        return loss.detach()

    def state(self) -> dict[str, Any]:
        """Return weights and momentum for a checkpoint."""
        return {"head": self.head.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load(self, state: dict[str, Any]) -> None:
        """Take up what :meth:`state` returned."""
        self.head.load_state_dict(state["head"])
        self.optimizer.load_state_dict(state["optimizer"])
