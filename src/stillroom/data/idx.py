"""IDX files, the format of MNIST and its relatives."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from stillroom.data.images import Source, TensorImages
from stillroom.errors import InputError

__all__ = ["read_idx", "read_idx_folder"]

# The third byte of the magic number is the element type (8: uint8), the fourth the number of dimensions.
_KINDS = {1: "labels", 3: "images"}


def read_idx(file: Path, dimensions: int) -> Tensor:
    """Read one IDX file of bytes, gzipped or not.

    Args:
        file: The file; ``.gz`` is decompressed on the way.
        dimensions: 1 for labels, 3 for images.

    Shapes:
        Returns [N] or [N, H, W], uint8.

    Raises:
        InputError: The file is damaged, too short, too long, or of another kind.
    """
    kind = _KINDS[dimensions]
    header_size = 4 + 4 * dimensions
    try:
        with gzip.open(file) if file.suffix == ".gz" else file.open("rb") as stream:
            header = stream.read(header_size)
            if len(header) < header_size:
                raise InputError(f"{file} is cut short: its header of {header_size} bytes is incomplete")
            magic, *sizes = struct.unpack(f">{1 + dimensions}I", header)
            if magic != 0x800 + dimensions:
                raise InputError(
                    f"{file} is no IDX file of {kind}: its magic number is {magic}, not {2048 + dimensions}"
                )
            expected = math.prod(sizes)
            body = _read_at_most(stream, expected + 1)  # one byte more shows a file that is too long
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(f"{file} is a damaged gzip file: {error}") from error
    except OSError as error:
        raise InputError(f"cannot read {file}: {error.strerror or error}") from error
    if len(body) != expected:
        found = "more follow" if len(body) > expected else f"only {len(body)} follow"
        raise InputError(
            f"{file} is damaged: its header promises {expected} bytes ({'x'.join(map(str, sizes))}), {found}"
        )
    return torch.from_numpy(np.frombuffer(body, dtype=np.uint8).reshape(sizes))


def _read_at_most(stream: BinaryIO | gzip.GzipFile, count: int) -> bytearray:
    """Read piece by piece: a damaged header may promise more than memory holds."""
    body = bytearray()
    while len(body) < count and (piece := stream.read(min(2**24, count - len(body)))):
        body += piece
    return body


def read_idx_folder(folder: Path, classes: tuple[str, ...] | None) -> Source:
    """Read the pairs of image and label files in a folder.

    Files named train and t10k (or test) are the two splits; a single pair is left to be split.

    Args:
        folder: Where the ``*images*idx3-ubyte[.gz]`` and ``*labels*idx1-ubyte[.gz]`` files lie.
        classes: Class names; None counts the different labels of the training images.

    Raises:
        InputError: Files are missing, ambiguous or damaged, or the counts of a pair differ.
    """
    files = sorted(file for file in folder.iterdir() if file.name.removesuffix(".gz").endswith("idx3-ubyte"))
    if not files:
        raise InputError(f"there are no IDX images (*-images-idx3-ubyte or .gz) in {folder}")
    test = [file for file in files if file.name.startswith("t10k") or "test" in file.name]
    train = [file for file in files if file not in test]
    if len(train) > 1 or len(test) > 1:
        names = ", ".join(file.name for file in (train if len(train) > 1 else test))
        raise InputError(
            f"{folder} has several IDX sets of one split ({names}); keep one pair of each split in a folder"
        )
    first, *second = [_read_pair(file) for file in train + test]
    if classes is None:
        classes = tuple(str(label) for label in range(len(set(first.target.tolist()))))
    return Source(classes, first, second[0] if second else None)


def _read_pair(file: Path) -> TensorImages:
    stem = file.name.removesuffix(".gz").replace("images", "labels").replace("idx3", "idx1")
    labels = [file.with_name(stem + ending) for ending in ("", ".gz") if file.with_name(stem + ending).is_file()]
    if not labels:
        raise InputError(f"{file} has no labels beside it; {stem} or {stem}.gz is missing")
    images, target = read_idx(file, 3), read_idx(labels[0], 1)
    if len(images) != len(target):
        raise InputError(f"{file} holds {len(images)} images, but {labels[0].name} {len(target)} labels")
    return TensorImages(images[:, None], target.long())
