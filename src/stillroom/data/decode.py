"""From encoded images (files, table cells) to uint8 pixels of one shape."""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from stillroom.errors import InputError, MissingExtraError

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["Blobs", "Decoder", "Encoded", "Files", "decode_all", "plan_decoder"]

CHUNK = 256  # images a thread decodes before it asks for more


class Encoded(Protocol):
    """A sequence of encoded images; crosses process borders, so it holds data and no open handles."""

    def __len__(self) -> int:
        """Count the images."""

    def read(self, index: int) -> bytes:
        """Return the encoded bytes of one image."""

    def where(self, index: int) -> str:
        """Name one image for a message."""


@dataclass(frozen=True)
class Files:
    """Encoded images that lie in files of their own."""

    paths: Sequence[Path]

    def __len__(self) -> int:
        """Count the images."""
        return len(self.paths)

    def read(self, index: int) -> bytes:
        """Return the bytes of one file."""
        try:
            return self.paths[index].read_bytes()
        except OSError as error:
            raise InputError(f"cannot read {self.paths[index]}: {error.strerror}") from error

    def where(self, index: int) -> str:
        """Return the file's path."""
        return str(self.paths[index])


@dataclass(frozen=True)
class Blobs:
    """Encoded images held in memory, such as the cells of a parquet column."""

    cells: Sequence[bytes]
    origin: str

    def __len__(self) -> int:
        """Count the images."""
        return len(self.cells)

    def read(self, index: int) -> bytes:
        """Return the bytes of one cell."""
        return self.cells[index]

    def where(self, index: int) -> str:
        """Return the table's name and the row."""
        return f"{self.origin}, row {index}"


@dataclass(frozen=True)
class Decoder:
    """Turns encoded bytes into uint8 pixels of one shape.

    Args:
        shape: Channels (1 or 3), height, width of what comes out.
        resize: Bring images of other sizes to this one; otherwise they are refused.
    """

    shape: tuple[int, int, int]
    resize: bool

    def __call__(self, data: bytes, where: str) -> npt.NDArray[np.uint8]:
        """Decode one image to [H, W, C].

        Raises:
            InputError: The bytes are no intact image, or it has another size or other colours than the set.
        """
        channels, height, width = self.shape
        image = _open(data, where)
        if channels == 1 and image.mode != "L":
            raise InputError(f"{where} is in colour, but the first image of every class is grey; make them alike")
        if self.resize:
            from PIL import Image, ImageOps

            # Cut to the target's proportions around the centre, then scale: nothing is distorted.
            image = ImageOps.fit(image, (width, height), Image.Resampling.BILINEAR)
        elif image.size != (width, height):
            raise InputError(
                f"{where} is {image.width}x{image.height}, the first image {width}x{height}; "
                "give data.image_size to resize all of them"
            )
        if channels == 3 and image.mode == "L":
            image = image.convert("RGB")
        return np.asarray(image).reshape(height, width, channels)


def plan_decoder(encoded: Encoded, probes: Sequence[int], image_size: int | None) -> Decoder:
    """Settle the common shape from a few images; grey only if all of them are.

    Args:
        encoded: The images.
        probes: Which of them to look at, such as the first of every class.
        image_size: Side to resize to; None keeps the first probe's size.
    """
    images = [_open(encoded.read(index), encoded.where(index)) for index in probes]
    channels = 1 if all(image.mode == "L" for image in images) else 3
    width, height = images[0].size if image_size is None else (image_size, image_size)
    return Decoder((channels, height, width), resize=image_size is not None)


def decode_all(encoded: Encoded, decoder: Decoder) -> Tensor:
    """Decode every image into one tensor with a few threads (the codecs release the interpreter's lock).

    Shapes:
        Returns [N, C, H, W], uint8.
    """
    channels, height, width = decoder.shape
    pixels = np.empty((len(encoded), channels, height, width), dtype=np.uint8)

    def fill(start: int) -> None:
        for index in range(start, min(start + CHUNK, len(encoded))):
            pixels[index] = decoder(encoded.read(index), encoded.where(index)).transpose(2, 0, 1)

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        try:
            for _ in pool.map(fill, range(0, len(encoded), CHUNK)):
                pass
        finally:
            pool.shutdown(cancel_futures=True)  # the first bad image ends it; the rest need not be decoded
    return torch.from_numpy(pixels)


def _open(data: bytes, where: str) -> Image:
    """Decode to grey (mode L) or RGB, whichever the image is."""
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError as error:
        raise MissingExtraError("pillow", "vision") from error
    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.mode[0] in "IF":  # more than 8 bits a channel: PIL would clip, not scale
                raise InputError(f"{where} has more than 8 bits per channel; convert it to an 8-bit image")
            return image.convert("L" if image.mode in ("1", "L") else "RGB")
    except InputError:
        raise
    except Image.DecompressionBombError as error:
        raise InputError(f"{where} is refused: it would decompress to more pixels than Pillow's limit") from error
    except UnidentifiedImageError as error:
        raise InputError(f"{where} is not an image Pillow can read") from error
    # What Pillow's codecs raise on damaged bytes depends on the format and on the place of the damage.
    except (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error, zlib.error) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{where} is a damaged image: {reason}") from error
