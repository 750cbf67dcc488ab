"""The pooled vectors that relational and contrastive methods read."""

from __future__ import annotations

from torch import Tensor

from stillroom.errors import InputError
from stillroom.models.signals import Signals

__all__ = ["pooled_of"]


def pooled_of(signals: Signals, role: str) -> Tensor:
    """Return the pooled vectors [B, D] of one network, flattened should they be maps.

    Raises:
        InputError: The network has none, because it does not end in a linear classifier.
    """
    if signals.pooled is None:
        raise InputError(
            f"the {role} gives no pooled features: it does not end in a linear classifier; name that layer as its "
            "classifier tap or choose another method"
        )
    return signals.pooled.flatten(1)
