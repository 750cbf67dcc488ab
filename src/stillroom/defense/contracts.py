"""What passes between a served model, its defence and whoever asks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = ["Answers", "Defence", "Detector", "Floats", "Images", "Ints", "Observe", "Observed", "Queries", "softmax"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


class Observed(NamedTuple):
    """What the model makes of a batch of images.

    Shapes:
        features: [B, d], the input of the last linear layer, float32.
        logits: [B, K], float32.
    """

    features: NDArray[np.floating]
    logits: NDArray[np.floating]


# 8-bit, as services take them, or float32 in 0..1, which only attacks inside the house can send.
Images = NDArray[np.uint8] | NDArray[np.floating]
Observe = Callable[[Images], Observed]  # images [B, C, H, W]


@dataclass(frozen=True)
class Queries:
    """Consecutive queries of one account, in the order they arrived, with what the model makes of them.

    Shapes:
        images: [B, C, H, W], as the client sent them (after decoding).
        features: [B, d].
        logits: [B, K], clean.
    """

    account: str
    images: Images
    features: NDArray[np.floating]
    logits: NDArray[np.floating]

    def __len__(self) -> int:
        """Count the queries."""
        return len(self.logits)


class Answers(NamedTuple):
    """What a defence lets out.

    Shapes:
        probabilities: [B, K], float64, rows sum to one.
        altered: [B], bool, whether the answer is another than the model's own.
        scores: [B], float64, how suspicious the account looked with this query; NaN where no score was due, and always
            for defences that watch no account.
    """

    probabilities: Floats
    altered: NDArray[np.bool_]
    scores: Floats


class Defence(Protocol):
    """Turns clean answers into those that leave the house."""

    def answer(self, queries: Queries) -> Answers:
        """Answer one account's consecutive queries, in order."""
        ...


class Detector(Protocol):
    """Watches accounts and scores each query with those before it; higher is more suspicious."""

    def watch(self, queries: Queries) -> Floats:
        """Take in one account's consecutive queries and return their scores [B]; NaN where none is due."""
        ...


def softmax(logits: NDArray[np.floating]) -> Floats:
    """Return the softmax of the rows [B, K], in float64.

    Example:
        >>> softmax(np.array([[0.0, 0.0], [1000.0, 0.0]])).tolist()
        [[0.5, 0.5], [1.0, 0.0]]
    """
    shifted = np.asarray(logits, np.float64)
    shifted = np.exp(shifted - shifted.max(-1, keepdims=True))
    return np.asarray(shifted / shifted.sum(-1, keepdims=True))
