"""What a tapped network hands to a distillation method, and where the taps sit."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

__all__ = ["Signals", "TapPaths"]


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


class TapPaths(NamedTuple):
    """Where a network is tapped, as module paths; ``path`` reads a module's output, ``path:input`` its first input.

    ``classifier`` is the path of the final linear layer (its input is the pooled vector), ``stem`` the map before the
    first stage. ``preact`` is empty or as long as ``stages``.
    """

    stages: tuple[str, ...]
    preact: tuple[str, ...] = ()
    classifier: str | None = None
    stem: str | None = None
