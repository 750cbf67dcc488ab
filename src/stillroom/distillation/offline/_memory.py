"""Embedding memories of contrastive methods and the negatives drawn from them."""

from __future__ import annotations

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional as F

from stillroom.errors import InputError
from stillroom.losses.checks import full_precision
from stillroom.losses.pairwise import product

__all__ = ["Negatives", "UnitLinear", "check_contrast", "initial_memory", "memory_scores", "update_memory"]

_MASK = 0xFFFFFFFF


class UnitLinear(nn.Linear):
    """A linear layer whose output rows are scaled to length 1: ``e = l2(W h + b)``.

    Shapes:
        input: [B, in_features]; output: [B, out_features], in at least float32.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Return the unit rows."""
        return F.normalize(full_precision(super().forward(input.to(self.weight.dtype))), dim=1)


def initial_memory(num_data: int, width: int, generator: torch.Generator) -> Tensor:
    """Return ``U(−1/√(d/3), 1/√(d/3))``, rows of mean square length 1, [num_data, width]."""
    bound = (3.0 / width) ** 0.5
    return torch.empty(num_data, width).uniform_(-bound, bound, generator=generator)


def _of_all_processes(rows: Tensor) -> Tensor:
    """Return the rows of all data-parallel processes, which hold equally many; the rows themselves where one runs."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return rows
    gathered = rows.new_empty((distributed.get_world_size() * len(rows), *rows.shape[1:]))
    distributed.all_gather_into_tensor(gathered, rows.contiguous())
    return gathered


@torch.no_grad()
def update_memory(memory: Tensor, index: Tensor, embedding: Tensor, *, momentum: float) -> None:
    """Move the batch's rows in place: ``M[idx] ← l2(momentum · M[idx] + (1 − momentum) · e)``.

    Under data-parallel training the rows of all processes move in every process, so the memories stay equal; all
    batches must be of one size.

    Shapes:
        memory: [N, D]; index: [B], int64; embedding: [B, D].
    """
    # Deviation: the releases keep one partial memory a process, which DDP then overwrites with the first one's.
    index, embedding = _of_all_processes(index), _of_all_processes(embedding)
    moved = momentum * full_precision(memory.index_select(0, index)) + (1.0 - momentum) * embedding
    memory.index_copy_(0, index, F.normalize(moved, dim=1).to(memory.dtype))


def memory_scores(anchors: Tensor, memory: Tensor, index: Tensor) -> Tensor:
    """Return the inner products of anchors with the memory rows named for their samples.

    The memory is copied where the gradient needs it, so it may be updated in place before the backward pass.

    Args:
        anchors: A anchors a sample; the gradient flows to them only.
        memory: One row a training sample.
        index: The rows each sample is compared with.

    Shapes:
        anchors: [A, B, D]; memory: [N, D]; index: [B, K], int64; the result is [A, B, K].
    """
    count, size, width = anchors.shape
    if len(memory) > index.numel():
        rows = memory.index_select(0, index.flatten()).view(size, -1, width)  # [B, K, D]
        return product(anchors.transpose(0, 1), rows.transpose(1, 2)).transpose(0, 1)
    # With more comparisons than rows, one product with the whole memory moves far less data than gathering
    # [B, K, D] (27 times faster for B = 64, K = 16384, N = 50 000 on a CPU).
    scores = product(anchors.flatten(0, 1), memory.detach().clone().T).view(count, size, -1)
    return scores.gather(2, index.expand(count, -1, -1))


def check_contrast(embedding: Tensor, memory: Tensor, index: Tensor, others: Tensor) -> None:
    """Refuse sample indices, lists of negatives and memories that do not fit the batch.

    The range of the indices is not checked here, since that would read them on the host; indexing refuses rows that
    do not exist (an ``IndexError`` on the CPU, a device-side assertion on an accelerator).

    Raises:
        InputError: Another shape or type than the one stated.
    """
    size, width = embedding.shape
    if index.shape != (size,) or index.dtype is not torch.int64:
        raise InputError(f"index must be [{size}] int64, one position a sample, not {list(index.shape)} {index.dtype}")
    if others.ndim != 2 or len(others) != size or others.shape[1] == 0 or others.dtype is not torch.int64:
        raise InputError(f"negatives must be [{size}, K] int64, not {list(others.shape)} {others.dtype}")
    if memory.ndim != 2 or memory.shape[1] != width:
        raise InputError(f"a memory must be [N, {width}] like the embeddings, not {list(memory.shape)}")


def _mix(value: Tensor) -> Tensor:
    """Scramble integers in [0, 2³²) one to one (multiply and xor-shift; the products stay below 2⁶³)."""
    value = ((value ^ (value >> 16)) * 0x21F0AAAD) & _MASK
    value = ((value ^ (value >> 15)) * 0x735A2D97) & _MASK
    return value ^ (value >> 15)


def _below(bits: Tensor, bound: Tensor) -> Tensor:
    """Turn random integers in [0, 2³²) into ones in [0, bound), bound < 2³¹."""
    return (bits * bound) >> 32


class Negatives(nn.Module):
    """Draws, for every sample of a batch, training samples of other classes.

    The other-class samples, sorted by class and turned by a random offset, are cut into K runs of equal length and one
    is drawn from each: all are distinct, all are equally likely, and every class comes in proportion. A class with
    fewer than K samples outside it gets them drawn independently, with replacement.

    The numbers are a function of ``(seed, number of draws so far, sample)``. The only state is a counter in the
    state dict, so a resumed run draws what the uninterrupted one would have, on any device, and the draw is part of
    a compiled step. In evaluation mode the counter stands still.

    Args:
        train_target: Classes of all training samples.
        count: K. At most the number of samples outside the smallest class: more would only repeat them.
        seed: Seed of the draws.

    Shapes:
        train_target: [N], int64; index: [B], int64, positions in the training set; the result is [B, K], int64.

    Raises:
        InputError: The classes are not [N] int64 or fewer than two are present.

    Example:
        >>> draw = Negatives(torch.tensor([0, 0, 1, 1, 2]), count=2, seed=0)
        >>> draw(torch.tensor([0, 4])).shape
        torch.Size([2, 2])
    """

    def __init__(self, train_target: Tensor, *, count: int, seed: int) -> None:
        super().__init__()
        if train_target.ndim != 1 or train_target.dtype is not torch.int64:
            raise InputError(f"train_target must be [N] int64 classes, not {list(train_target.shape)}")
        if len(train_target) == 0 or int(train_target.min()) < 0:
            raise InputError("train_target must hold at least one class index and no negative one")
        if count < 1:
            raise InputError(f"num_negatives must be at least 1, not {count}")
        size = torch.bincount(train_target)
        present = size[size > 0]
        if len(present) < 2:
            raise InputError(
                f"negatives are drawn from other classes, but all training samples are of class {int(train_target[0])}"
            )
        self.count = min(count, len(train_target) - int(present.min()))
        self.seed = seed
        # Derived from the data set, so not saved: sorted positions, and where each sample's class starts and ends.
        self.register_buffer("order", torch.argsort(train_target, stable=True), persistent=False)
        self.register_buffer("class_start", (size.cumsum(0) - size)[train_target], persistent=False)
        self.register_buffer("class_size", size[train_target], persistent=False)
        self.register_buffer("draws", torch.zeros((), dtype=torch.int64))
        self.order: Tensor
        self.class_start: Tensor
        self.class_size: Tensor
        self.draws: Tensor

    def forward(self, index: Tensor) -> Tensor:
        """Return K positions of other-class samples for every sample."""
        own_start = self.class_start.index_select(0, index)[:, None]  # [B, 1]
        own_size = self.class_size.index_select(0, index)[:, None]
        others = len(self.order) - own_size

        # Keyed by the sample, not by its row: the order of the batch and the rank of the process do not matter.
        key = _mix(_mix((self.draws + (self.seed & _MASK)) & _MASK) ^ ((self.seed >> 32) & _MASK))
        key = _mix((key + index[:, None]) & _MASK)
        stride = _mix(key ^ 0x9E3779B9) | 1
        turn = _below(_mix(key ^ 0x7F4A7C15), others)
        step = torch.arange(self.count + 1, device=index.device)
        bits = _mix((key + stride * step[:-1]) & _MASK)  # [B, K]

        edges = torch.div(step * others, self.count, rounding_mode="floor")  # [B, K + 1]
        run = edges[:, :-1] + _below(bits, edges.diff(dim=1)) + turn
        distinct = torch.where(run >= others, run - others, run)
        place = torch.where(others >= self.count, distinct, _below(bits, others))
        place = torch.where(place >= own_start, place + own_size, place)
        if self.training:
            self.draws.add_(1)
        return self.order.take(place)

    def extra_repr(self) -> str:
        """Show the number of negatives and the seed."""
        return f"count={self.count}, seed={self.seed}"
