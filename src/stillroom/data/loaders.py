"""Loaders: shuffled, augmented, normalised batches of training images, and plain ones for evaluation."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from stillroom.data.augment import Normaliser, crop, crop_padding, flip
from stillroom.data.batch import Batch
from stillroom.data.images import ImageSet, StreamedImages, TensorImages
from stillroom.data.options import Augment
from stillroom.data.split import random_stream
from stillroom.errors import InputError, unknown_name

__all__ = ["EvalLoader", "TrainLoader"]

# Purposes of the random streams of one seed.
_ORDER, _PIXELS = 0, 1


class TrainLoader:
    """Training batches: shuffled every epoch; cropped, mirrored and normalised on the device.

    The order depends on (seed, epoch), the augmentation of sample i on (seed, view of the epoch, i); neither on the
    batch size, the number of processes or the step an epoch is entered at, so a resumed run sees the same pixels.
    The last incomplete batch is dropped.

    Args:
        images: The training images; those in memory move to the device once.
        batch_size: Images per step and process.
        seed: Seed of order and augmentation.
        augment: What to do to them; crops are taken after ``crop_padding`` black pixels were added on every side.
        mean: Mean of every channel, for pixels in 0..1.
        std: Standard deviation likewise.
        device: Where the batches are made.
        rank: Which share of every global batch this process takes.
        world_size: Number of processes.
        views: Period of the augmentations in epochs; 0 draws new ones each epoch.

    Raises:
        InputError: The images do not fill one batch on every process.

    Example:
        >>> images = TensorImages(torch.zeros(10, 1, 8, 8, dtype=torch.uint8), torch.zeros(10, dtype=torch.int64))
        >>> loader = TrainLoader(images, batch_size=4, seed=0, augment="crop", mean=(0.5,), std=(0.5,))
        >>> [tuple(batch.images.shape) for batch in loader.epoch(1)]
        [(4, 1, 8, 8), (4, 1, 8, 8)]
    """

    def __init__(
        self,
        images: ImageSet,
        *,
        batch_size: int,
        seed: int,
        augment: Augment,
        mean: Sequence[float],
        std: Sequence[float],
        device: torch.device | str = "cpu",
        rank: int = 0,
        world_size: int = 1,
        views: int = 0,
    ) -> None:
        if augment not in get_args(Augment):
            raise unknown_name("augmentation", augment, get_args(Augment))
        _check_batch_size(batch_size)
        if len(images) < batch_size * world_size:
            share = f" on each of {world_size} processes" if world_size > 1 else ""
            raise InputError(
                f"{len(images)} training images do not fill a batch of {batch_size}{share}; lower --recipe.batch_size"
            )
        self.images = images
        self.batch_size = batch_size
        self.seed = seed
        self.augment = augment
        self.device = torch.device(device)
        self.rank = rank
        self.world_size = world_size
        self.views = views
        self.padding = 0 if augment == "none" else crop_padding(min(images.shape[1:]))
        self._normalise = Normaliser(mean, std, self.device)
        self._target = images.target.to(self.device)
        self._resident = _resident(images, self.device, self.padding)

    def __len__(self) -> int:
        """Count the steps of an epoch."""
        return len(self.images) // (self.batch_size * self.world_size)

    def view(self, number: int) -> int:
        """Return the view (from 0) epoch ``number`` (from 1) shows: equal views have equal pixels."""
        return (number - 1) % self.views if self.views else number - 1

    def epoch(self, number: int, start: int = 0) -> Iterator[Batch]:
        """Yield the batches of epoch ``number`` (counted from 1), from step ``start`` on, always the same ones."""
        shuffled = torch.randperm(len(self.images), generator=random_stream(self.seed, _ORDER, number))
        # Every process takes its slice of the same global batch.
        whole = shuffled[: len(self) * self.world_size * self.batch_size]
        order = whole.view(-1, self.world_size, self.batch_size)[start:, self.rank]
        return self._batches(order.unbind(), self.view(number))

    def whole_view(self, view: int) -> Iterator[Batch]:
        """Yield every sample of one view (from 0) once, in order and with none dropped, as a teacher cache needs."""
        return self._batches(torch.split(torch.arange(len(self.images)), self.batch_size), view)

    def _batches(self, order: Sequence[Tensor], view: int) -> Iterator[Batch]:
        if not order:
            return
        # Looked up for the whole epoch at once; what is left to a step are views.
        index = torch.cat(list(order)).to(self.device)
        sizes = [len(batch) for batch in order]
        looked_up = (index, self._target[index], *(draw[index] for draw in self._draws(view)))
        places, *rest = (torch.split(values, sizes) for values in looked_up)
        steps = zip(places, *rest, self._pixels(order, places), strict=True)
        for place, target, top, left, mirrored, (pixels, row) in steps:
            cut = pixels[row] if self.augment == "none" else crop(pixels, row, top, left, self.images.shape[1:])
            if self.augment == "crop-flip":
                cut = flip(cut, mirrored)
            yield Batch(self._normalise(cut), target, place)

    def _draws(self, view: int) -> tuple[Tensor, Tensor, Tensor]:
        """Draw every sample's window and mirroring, whether this process needs it or not."""
        generator = random_stream(self.seed, _PIXELS, view)
        count, windows = len(self.images), 2 * self.padding + 1
        top = torch.randint(windows, (count,), generator=generator)
        left = torch.randint(windows, (count,), generator=generator)
        mirrored = torch.rand(count, generator=generator) < 0.5
        return top.to(self.device), left.to(self.device), mirrored.to(self.device)

    def _pixels(self, order: Sequence[Tensor], places: Sequence[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield for every batch images with their border, and which of them form it."""
        if isinstance(self.images, TensorImages):
            yield from ((self._resident, place) for place in places)
        else:
            for pixels in _streamed(self.images, order, self.device):
                yield F.pad(pixels, (self.padding,) * 4), torch.arange(len(pixels), device=self.device)


class EvalLoader:
    """Every image once, in order, only normalised; the last batch may be smaller.

    Args:
        images: The images; those in memory move to the device once.
        batch_size: Images per batch.
        mean: Mean of every channel, for pixels in 0..1.
        std: Standard deviation likewise.
        device: Where the batches are made.

    Example:
        >>> images = TensorImages(torch.zeros(5, 1, 8, 8, dtype=torch.uint8), torch.zeros(5, dtype=torch.int64))
        >>> [batch.index.tolist() for batch in EvalLoader(images, batch_size=3, mean=(0.5,), std=(0.5,))]
        [[0, 1, 2], [3, 4]]
    """

    def __init__(
        self,
        images: ImageSet,
        *,
        batch_size: int,
        mean: Sequence[float],
        std: Sequence[float],
        device: torch.device | str = "cpu",
    ) -> None:
        _check_batch_size(batch_size)
        self.images = images
        self.batch_size = batch_size
        self.device = torch.device(device)
        self._normalise = Normaliser(mean, std, self.device)
        self._target = images.target.to(self.device)
        self._resident = _resident(images, self.device, padding=0)

    def __len__(self) -> int:
        """Count the batches."""
        return -(-len(self.images) // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        """Yield all batches."""
        return self.epoch(1)

    def epoch(self, number: int, start: int = 0) -> Iterator[Batch]:
        """Yield the batches from ``start`` on; the epoch's ``number`` changes nothing."""
        order = torch.split(torch.arange(len(self.images)), self.batch_size)[start:]
        if isinstance(self.images, TensorImages):
            pixels: Iterable[Tensor] = torch.split(self._resident, self.batch_size)[start:]
        else:
            pixels = _streamed(self.images, order, self.device)
        for index, part in zip(_to_device(order, self.device), pixels, strict=True):
            yield Batch(self._normalise(part), self._target[index], index)


def _check_batch_size(batch_size: int) -> None:
    if batch_size < 1:
        raise InputError(f"batch_size is {batch_size}; it must be at least 1")


def _resident(images: ImageSet, device: torch.device, padding: int) -> Tensor:
    """Bring an in-memory set to the device with its border: memory once instead of a copy every step."""
    if not isinstance(images, TensorImages):
        return torch.empty(0)
    pixels = images.pixels.to(device)
    return F.pad(pixels, (padding,) * 4) if padding else pixels


def _streamed(images: StreamedImages, order: Sequence[Tensor], device: torch.device) -> Iterator[Tensor]:
    for pixels in images.batches(order, pin_memory=device.type == "cuda"):
        yield pixels.to(device, non_blocking=True)


def _to_device(order: Sequence[Tensor], device: torch.device) -> Iterable[Tensor]:
    """Move the positions of a whole epoch in one transfer; a step then takes a view."""
    if not order:
        return ()
    return torch.split(torch.cat(list(order)).to(device), [len(index) for index in order])
