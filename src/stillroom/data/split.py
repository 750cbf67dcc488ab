"""Class-balanced subsets and splits, and the random streams they and the loaders draw from."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

__all__ = ["per_class_share", "random_stream", "set_aside", "subset_per_class"]


def random_stream(*key: int) -> torch.Generator:
    """Return a CPU generator that depends on the whole key and on nothing else.

    Neighbouring keys give unrelated streams, which plain ``seed + epoch`` arithmetic does not promise.

    Args:
        key: Non-negative integers, such as (seed, purpose, epoch).

    Example:
        >>> int(torch.randint(100, (), generator=random_stream(0, 1))) == \
                int(torch.randint(100, (), generator=random_stream(0, 1)))
        True
    """
    seed = int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0])
    return torch.Generator().manual_seed(seed)


def subset_per_class(target: Tensor, quota: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw ``quota[k]`` positions of every class k; return (drawn, rest), both in ascending order.

    With equal generators a smaller quota draws a subset of what a larger one draws.

    Args:
        target: Class of each sample.
        quota: How many to draw of each class.
        generator: Source of the draw.

    Shapes:
        target: [N], int64. quota: [K], int64. Returns two int64 vectors that partition 0..N-1.

    Example:
        >>> drawn, rest = subset_per_class(torch.tensor([0, 0, 1, 1]), torch.tensor([1, 2]), random_stream(0))
        >>> len(drawn), len(rest)
        (3, 1)
    """
    shuffled = torch.randperm(len(target), generator=generator)
    by_class = shuffled[torch.argsort(target[shuffled], stable=True)]
    counts = torch.bincount(target, minlength=len(quota))
    first = torch.cumsum(counts, 0) - counts
    rank = torch.arange(len(target)) - first[target[by_class]]  # place of each sample among its class
    chosen = rank < quota[target[by_class]]
    return by_class[chosen].sort().values, by_class[~chosen].sort().values


def per_class_share(target: Tensor, classes: int, share: float, *, minimum: int = 0) -> Tensor:
    """Return the rounded share of every class's samples, at least ``minimum`` and at most all of them.

    Shapes:
        target: [N], int64. Returns [K], int64.

    Example:
        >>> per_class_share(torch.tensor([0, 0, 0, 0, 1]), 2, 0.5, minimum=1).tolist()
        [2, 1]
    """
    counts = torch.bincount(target, minlength=classes)
    wanted = torch.floor(counts.double() * share + 0.5).long()
    return torch.minimum(wanted.clamp(min=minimum), counts)


def set_aside(target: Tensor, classes: int, share: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Split off a share of every class, leaving each at least one sample; return (kept, set aside) positions.

    Shapes:
        target: [N], int64. Returns two int64 vectors that partition 0..N-1, in ascending order.

    Example:
        >>> kept, aside = set_aside(torch.tensor([0, 0, 0, 0, 0, 1]), 2, 0.2, random_stream(0))
        >>> len(kept), len(aside)
        (5, 1)
    """
    counts = torch.bincount(target, minlength=classes)
    quota = torch.minimum(per_class_share(target, classes, share), (counts - 1).clamp(min=0))
    aside, kept = subset_per_class(target, quota, generator)
    return kept, aside
