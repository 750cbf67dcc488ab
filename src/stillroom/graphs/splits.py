"""Random splits of labelled nodes into training, validation and test."""

from __future__ import annotations

import torch
from torch import Tensor

from stillroom.data.split import subset_per_class
from stillroom.errors import InputError

__all__ = ["random_split"]


def random_split(
    y: Tensor, *, per_class: int, val: int, test: int, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Draw equally many training nodes of every class, then validation and test nodes from the other labelled ones.

    With several labels a node the training nodes cannot be equally many of every label; ``per_class`` times the number
    of labels are drawn from all nodes. Equal generators draw equal training nodes whatever ``val`` and ``test`` are.

    Args:
        y: The labels; nodes of label -1 are in no split.
        per_class: Training nodes of every class that has any node.
        val: Validation nodes.
        test: Test nodes.
        generator: Source of the draw.

    Shapes:
        y: [N] int64, or [N, C] of zeros and ones. Returns three masks [N], bool.

    Raises:
        InputError: A class has fewer nodes than ``per_class``, or too few nodes are left for the rest.

    Example:
        >>> masks = random_split(
        ...     torch.tensor([0, 0, 1, 1, -1]), per_class=1, val=1, test=1, generator=torch.Generator().manual_seed(0)
        ... )
        >>> [int(mask.sum()) for mask in masks], any(bool(mask[4]) for mask in masks)
        ([2, 1, 1], False)
    """
    if y.dim() == 2:
        order = torch.randperm(len(y), generator=generator)
        train, rest = order[: per_class * y.shape[1]], order[per_class * y.shape[1] :]
    else:
        labelled = (y >= 0).nonzero().flatten()
        counts = torch.bincount(y[labelled])
        scarce = ((counts > 0) & (counts < per_class)).nonzero().flatten().tolist()
        if scarce:
            sizes = ", ".join(f"class {one} has {int(counts[one])}" for one in scarce[:5])
            raise InputError(
                f"a random split takes {per_class} training nodes of every class, but {sizes} labelled nodes; "
                "lower data.per_class"
            )
        quota = torch.where(counts > 0, per_class, 0)
        train, rest = (labelled[part] for part in subset_per_class(y[labelled], quota, generator))
        rest = rest[torch.randperm(len(rest), generator=generator)]
    if len(rest) < val + test:
        raise InputError(
            f"{len(rest)} labelled nodes are left beside {len(train)} training nodes, but validation and test ask for "
            f"{val} + {test}; lower data.val, data.test or data.per_class"
        )
    return _mask(len(y), train), _mask(len(y), rest[:val]), _mask(len(y), rest[val : val + test])


def _mask(nodes: int, index: Tensor) -> Tensor:
    mask = torch.zeros(nodes, dtype=torch.bool)
    mask[index] = True
    return mask
