"""What the feature-map methods share: sizes, pooling and the frozen teacher classifier."""

from __future__ import annotations

import warnings

from torch import Tensor, nn
from torch.nn import functional as F

from stillroom.errors import InputError
from stillroom.models.signals import Signals

__all__ = [
    "count_pairs",
    "frozen_linear",
    "pool_larger",
    "pool_to",
    "pooled_pair",
    "require_pooled",
    "require_stages",
    "side",
]


def pool_to(feature_map: Tensor, size: int) -> Tensor:
    """Average-pool a square map [B, C, h, h] adaptively to [B, C, size, size]."""
    height = feature_map.shape[-1]
    if height == size:
        return feature_map
    if height % size == 0:
        # Equal windows: the plain pooling has a deterministic, cheaper backward pass on accelerators.
        return F.avg_pool2d(feature_map, height // size)
    return F.adaptive_avg_pool2d(feature_map, size)


def pool_larger(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Pool the larger map of a pair to the size of the smaller one."""
    size = min(student.shape[-1], teacher.shape[-1])
    return pool_to(student, size), pool_to(teacher, size)


def side(feature_map: Tensor, owner: str) -> int:
    """Return the side of a square map.

    Raises:
        InputError: The tap does not give a map, or the map is not square.
    """
    if feature_map.ndim != 4:
        raise InputError(f"the {owner}'s tap gives {tuple(feature_map.shape)}, not a feature map [B, C, H, W]")
    height, width = feature_map.shape[-2:]
    if height != width:
        raise InputError(
            f"the {owner}'s feature map is {height}×{width}, but this method pools square maps; use square images"
        )
    return int(height)


def require_stages(signals: Signals, owner: str, method: str) -> tuple[Tensor, ...]:
    """Return the feature maps, which must exist and be square.

    Raises:
        InputError: There is none (no taps, or a cached teacher), or one is not square.
    """
    if not signals.stages:
        raise InputError(
            f"{method} reads feature maps, but the {owner} gives none; name its taps, and use a live teacher "
            "(a cached one keeps only logits and pooled features)"
        )
    for feature_map in signals.stages:
        side(feature_map, owner)
    return signals.stages


def require_pooled(signals: Signals, owner: str, method: str) -> Tensor:
    """Return the pooled vector, which must exist.

    Raises:
        InputError: The network has no final linear layer whose input could be tapped.
    """
    if signals.pooled is None:
        raise InputError(
            f"{method} reads the input of the final linear layer, but the {owner} has none that is tapped; "
            "name the path of its classifier"
        )
    return signals.pooled


def pooled_pair(student: Signals, teacher: Signals, method: str) -> tuple[Tensor, Tensor]:
    """Return the pooled vectors of both networks, see :func:`require_pooled`."""
    return require_pooled(student, "student", method), require_pooled(teacher, "teacher", method)


def count_pairs(student: tuple[Tensor, ...], teacher: tuple[Tensor, ...], method: str, unused: str) -> int:
    """Return how many stages can be paired, and warn which of the longer list stay unused."""
    if len(student) != len(teacher):
        warnings.warn(
            f"{method} pairs stages one to one, but the student has {len(student)} and the teacher {len(teacher)}; "
            f"the {unused} of the longer list stay unused (name the taps to choose others)",
            stacklevel=3,
        )
    return min(len(student), len(teacher))


def frozen_linear(classifier: nn.Linear | None, method: str) -> nn.Linear:
    """Copy the teacher's classifier with its parameters frozen, without the hooks a tap may have put on it.

    Raises:
        InputError: The teacher has no final linear layer.
    """
    if classifier is None:
        raise InputError(f"{method} reuses the teacher's classifier, but the teacher has no final linear layer")
    copy = nn.Linear(classifier.in_features, classifier.out_features, bias=classifier.bias is not None)
    copy.to(classifier.weight)
    copy.load_state_dict(classifier.state_dict())
    return copy.requires_grad_(False)
