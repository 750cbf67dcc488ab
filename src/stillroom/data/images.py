"""Sets of labelled images: all in memory, or decoded as they are read."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from stillroom.data.decode import Decoder, Encoded, decode_all, plan_decoder
from stillroom.data.options import Augment
from stillroom.data.split import random_stream
from stillroom.errors import InputError

__all__ = ["ImageData", "ImageSet", "Source", "StreamedImages", "TensorImages", "mean_and_std", "read_encoded"]

MEMORY_LIMIT = 2 * 2**30  # bytes of decoded pixels up to which a set is held in memory
STATISTICS_SAMPLE = 4096  # streamed images that mean and standard deviation are measured on


@dataclass(frozen=True, eq=False)
class TensorImages:
    """Labelled images that fit in memory, as one tensor.

    Shapes:
        pixels: [N, C, H, W], uint8.
        target: [N], int64.

    Example:
        >>> images = TensorImages(torch.zeros(4, 1, 8, 8, dtype=torch.uint8), torch.arange(4))
        >>> len(images.subset(torch.tensor([0, 3])))
        2
    """

    pixels: Tensor
    target: Tensor

    def __len__(self) -> int:
        """Count the images."""
        return len(self.target)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of one image."""
        channels, height, width = self.pixels.shape[1:]
        return channels, height, width

    def subset(self, index: Tensor) -> TensorImages:
        """Return the images at these positions, in this order."""
        return TensorImages(self.pixels[index], self.target[index])

    def fingerprint(self) -> str:
        """Return a SHA-256 of shape, pixels and targets; equal sets have equal ones."""
        digest = hashlib.sha256(repr(self.shape).encode())
        digest.update(self.pixels.cpu().contiguous().numpy().data)
        digest.update(self.target.cpu().contiguous().numpy().data)
        return digest.hexdigest()


@dataclass(frozen=True, eq=False)
class StreamedImages:
    """Labelled images too large for memory, decoded batch by batch in worker processes.

    Args:
        encoded: Every encoded image of the source.
        position: Which of them belong to this set, in this order.
        target: Class of each image of this set.
        decoder: Turns bytes into pixels of one shape.

    Shapes:
        position: [N], int64. target: [N], int64.
    """

    encoded: Encoded
    position: Tensor
    target: Tensor
    decoder: Decoder

    def __len__(self) -> int:
        """Count the images."""
        return len(self.target)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of one image."""
        return self.decoder.shape

    def subset(self, index: Tensor) -> StreamedImages:
        """Return the images at these positions, in this order; nothing is decoded."""
        return StreamedImages(self.encoded, self.position[index], self.target[index], self.decoder)

    def fingerprint(self) -> str:
        """Return a SHA-256 of shape, encoded bytes and targets; every image is read once."""
        digest = hashlib.sha256(repr(self.decoder).encode())
        for index in self.position.tolist():
            digest.update(hashlib.sha256(self.encoded.read(index)).digest())
        digest.update(self.target.numpy().data)
        return digest.hexdigest()

    def batches(self, order: Sequence[Tensor], *, pin_memory: bool = False) -> Iterator[Tensor]:
        """Decode one batch for every vector of positions, ahead of use.

        Shapes:
            Yields [B, C, H, W], uint8, on the CPU.
        """
        workers = min(8, os.cpu_count() or 1, len(order))
        reader: DataLoader[Any] = DataLoader(
            _Reader(self),
            sampler=order,
            batch_size=None,  # the sampler's items are whole batches; a worker stacks them itself
            num_workers=workers,
            pin_memory=pin_memory,
            generator=random_stream(0),  # the workers' seeds must not come out of the model's random stream
        )
        for batch in reader:
            if isinstance(batch, InputError):
                raise batch
            yield batch


ImageSet = TensorImages | StreamedImages


@dataclass(frozen=True, eq=False)
class Source:
    """What a reader found: class names, training images, and test images unless they are still to be split off."""

    classes: tuple[str, ...]
    train: ImageSet
    test: ImageSet | None


def read_encoded(encoded: Encoded, target: Tensor, image_size: int | None, *, like: ImageSet | None = None) -> ImageSet:
    """Decode images into memory, or prepare to stream them when they would take more than ``MEMORY_LIMIT``.

    Args:
        encoded: The images.
        target: Class of each.
        image_size: Side to resize to; None wants images of one size.
        like: A set whose shape these images must have, such as the training images of test images.

    Raises:
        InputError: An image is damaged or of another size or other colours than the first.
    """
    if len(encoded) == 0:
        raise InputError("the data set holds no images")
    if like is not None:
        decoder = Decoder(like.shape, resize=image_size is not None)
    else:
        # The first image of every class: enough to tell grey sets from coloured ones without opening every file.
        order = torch.argsort(target, stable=True)
        firsts = order[torch.cat([torch.ones(1, dtype=torch.bool), target[order].diff() != 0])]
        decoder = plan_decoder(encoded, firsts.sort().values.tolist(), image_size)
    if len(encoded) * math.prod(decoder.shape) > MEMORY_LIMIT:
        return StreamedImages(encoded, torch.arange(len(encoded)), target, decoder)
    return TensorImages(decode_all(encoded, decoder), target)


class _Reader(Dataset[Any]):
    """What runs in the worker processes."""

    def __init__(self, images: StreamedImages) -> None:
        self.images = images

    def __getitem__(self, index: Tensor) -> Tensor | InputError:
        images = self.images
        try:
            decoded = [
                torch.from_numpy(images.decoder(images.encoded.read(i), images.encoded.where(i)).copy())
                for i in images.position[index].tolist()
            ]
        except InputError as error:
            return error  # raised, it would come out wrapped in the worker's traceback
        return torch.stack(decoded).permute(0, 3, 1, 2).contiguous()


@dataclass(frozen=True, eq=False)
class ImageData:
    """One data set, ready for the loaders.

    Args:
        name: The name it was asked for by.
        classes: Class names; a target is a position in it.
        mean: Mean of every channel over the whole training data, for pixels in 0..1.
        std: Standard deviation likewise.
        shape: Channels, height, width.
        augment: What suits the training images ("auto" resolved).
        train: Training images, after the subset was drawn and the held-out part taken away.
        holdout: Training images set aside to choose a best epoch on; None when none were asked for.
        test: Test images.
    """

    name: str
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    shape: tuple[int, int, int]
    augment: Augment
    train: ImageSet
    holdout: ImageSet | None
    test: ImageSet

    def describe(self) -> dict[str, Any]:
        """Return plain values for a run's results: name, shape, classes, normalisation, images per split and class."""
        splits = {"train": self.train, "holdout": self.holdout, "test": self.test}
        return {
            "name": self.name,
            "shape": list(self.shape),
            "classes": list(self.classes),
            "mean": list(self.mean),
            "std": list(self.std),
            "augment": self.augment,
            "splits": {
                split: {
                    "images": len(images),
                    "per_class": torch.bincount(images.target, minlength=len(self.classes)).tolist(),
                }
                for split, images in splits.items()
                if images is not None
            },
        }


def mean_and_std(images: ImageSet) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Measure mean and standard deviation of every channel, for pixels in 0..1.

    All images count when they are in memory, an evenly spaced sample when they are streamed.

    Raises:
        InputError: A channel has the same value everywhere and cannot be normalised.

    Example:
        >>> pixels = torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1)
        >>> mean_and_std(TensorImages(pixels, torch.zeros(2, dtype=torch.int64)))
        ((0.5,), (0.5,))
    """
    if isinstance(images, TensorImages):
        parts: Iterator[Tensor] = iter(torch.split(images.pixels, 1024))
    else:
        spread = torch.arange(0, len(images), -(-len(images) // STATISTICS_SAMPLE))
        parts = images.batches(torch.split(spread, 64))
    count = 0
    totals = torch.zeros(images.shape[0], dtype=torch.int64)
    square_totals = torch.zeros_like(totals)
    for part in parts:  # integer sums: the same result whatever the number of threads
        wide = part.int()
        totals += wide.sum((0, 2, 3))
        square_totals += wide.square_().sum((0, 2, 3))
        count += part.numel() // part.shape[1]
    mean = totals.double() / count
    variance = square_totals.double() / count - mean.square()
    if bool((variance <= 0).any()):
        raise InputError("all training images have one and the same value in a colour channel; nothing can be learnt")
    return tuple((mean / 255).tolist()), tuple((variance.sqrt() / 255).tolist())
