"""What a tapped network hands to a distillation method."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

__all__ = ["Signals"]


class Signals(NamedTuple):
    """Outputs of one forward pass of a tapped network.

    Shapes:
        logits: [B, K].
        stages: feature maps shallow to deep, each [B, C, H, W]; the stem is not among them. Token sequences of
            transformers arrive as maps too (prefix tokens dropped). Empty unless tapped.
        preact: the same maps before their last activation, where the architecture defines them. Empty unless tapped.
        pooled: [B, D], the input of the final linear classifier; ``None`` unless tapped.
    """

    logits: Tensor
    stages: tuple[Tensor, ...] = ()
    preact: tuple[Tensor, ...] = ()
    pooled: Tensor | None = None
