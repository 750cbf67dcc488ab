"""The batch every loader yields and every task takes."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

__all__ = ["Batch"]


class Batch(NamedTuple):
    """One batch of labelled images.

    Shapes:
        images: [B, C, H, W], float, normalised with the data set's mean and standard deviation.
        target: [B], int64 class indices.
        index: [B], int64 position of each sample in the training set (memories and caches are keyed by it).
    """

    images: Tensor
    target: Tensor
    index: Tensor  # type: ignore[assignment]  # a named field hides tuple.index, which nobody needs here
