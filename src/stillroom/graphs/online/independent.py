"""Independent training: every student learns from the labels alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor

from stillroom.cards import Card, Paper
from stillroom.graphs.batch import NodeBatch
from stillroom.graphs.online._method import Method, Output, label_losses

__all__ = ["Independent"]


class Independent(Method):
    """Students that learn from the labels alone, the baseline of all others: ``L = sum_i CE(z_i, y)``."""

    card: ClassVar[Card] = Card(
        name="independent",
        summary="Students learn from the labels alone; the baseline of the other methods and their ensemble.",
        papers=(
            Paper(
                title="Online Adversarial Knowledge Distillation for Graph Neural Networks",
                authors="C. Wang, Z. Wang, D. Chen, S. Zhou, Y. Feng, C. Chen",
                venue="Expert Systems with Applications 237",
                year=2024,
                identifier="arXiv:2112.13966",
            ),
        ),
        standing="verified",
    )
    fewest: ClassVar[int] = 1

    def forward(self, outputs: Sequence[Output], batch: NodeBatch) -> dict[str, Tensor]:
        """Return the sum of the losses on the labels."""
        loss = label_losses(outputs, batch)
        return {"loss": loss, "labels": loss.detach()}
