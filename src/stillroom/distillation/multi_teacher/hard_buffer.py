"""A buffer of samples the student gets wrong, from which the meta step draws its batches."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from stillroom.data.batch import Batch
from stillroom.errors import InputError

__all__ = ["HardBuffer"]


class HardBuffer(nn.Module):
    """Whole batches until it is full; then misclassified samples take the places of random ones.

    Its content is part of the module's state, so a resumed training draws the same batches.

    Args:
        size: Samples it holds, a multiple of the batch size.
        sample: A batch like those to come.

    Raises:
        InputError: The size is not a multiple of the batch size.
    """

    images: Tensor
    target: Tensor
    index: Tensor

    def __init__(self, size: int, sample: Batch) -> None:
        super().__init__()
        if size < 1 or size % len(sample.target):
            raise InputError(f"the buffer holds {size} samples; that must be a multiple of {len(sample.target)}")
        self.size, self.filled = size, 0
        for name, value in zip(Batch._fields, sample, strict=True):
            self.register_buffer(name, value.new_zeros(size, *value.shape[1:]))

    @property
    def full(self) -> bool:
        """Whether every place is taken."""
        return self.filled == self.size

    def update(self, batch: Batch, wrong: Tensor) -> None:
        """Append the whole batch, or, once full, let its ``wrong`` samples ([B], bool) replace random ones."""
        if self.full:
            slots = torch.randperm(self.size, device=wrong.device)[: len(wrong)]
            self.replace(batch, wrong, slots)
        else:
            for own, new in zip(self._content(), batch, strict=True):
                own[self.filled : self.filled + len(new)] = new
            self.filled += len(wrong)

    def replace(self, batch: Batch, wrong: Tensor, slots: Tensor) -> None:
        """Put the wrong samples of a batch into their slots ([B] different places); the others change nothing."""
        for own, new in zip(self._content(), batch, strict=True):
            mask = wrong.view(-1, *(1,) * (new.ndim - 1))
            own[slots] = torch.where(mask, new, own[slots])

    def draw(self, count: int) -> Batch:
        """Return random samples, none twice."""
        places = torch.randperm(self.size, device=self.target.device)[:count]
        return Batch(*(own[places] for own in self._content()))

    def _content(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.images, self.target, self.index

    def get_extra_state(self) -> dict[str, Any]:
        """Return how many places are taken."""
        return {"filled": self.filled}

    def set_extra_state(self, state: Any) -> None:
        """Take up how many places are taken."""
        self.filled = state["filled"]
