"""Small data sets written for a test."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

WriteIdx = Callable[..., Path]
WriteImages = Callable[..., Path]


@pytest.fixture
def write_idx(tmp_path: Path) -> WriteIdx:
    """Write a pair of IDX files with random 5x4 images and the given labels."""

    def write(prefix: str, labels: Sequence[int], folder: Path = tmp_path) -> Path:
        pixels = np.random.default_rng(0).integers(256, size=(len(labels), 5, 4), dtype=np.uint8)
        header = struct.pack(">4I", 2051, len(labels), 5, 4)
        (folder / f"{prefix}images-idx3-ubyte").write_bytes(header + pixels.tobytes())
        (folder / f"{prefix}labels-idx1-ubyte").write_bytes(struct.pack(">2I", 2049, len(labels)) + bytes(labels))
        return folder

    return write


@pytest.fixture
def write_images(tmp_path: Path) -> WriteImages:
    """Write class folders of random lossless images and return the folder above them."""

    def write(
        name: str = "set",
        classes: Sequence[str] = ("cat", "dog", "owl"),
        each: int = 5,
        size: tuple[int, int] = (9, 7),
        mode: str = "RGB",
        suffix: str = "png",
    ) -> Path:
        random = np.random.default_rng(1)
        for label in classes:
            (tmp_path / name / label).mkdir(parents=True)
            for number in range(each):
                pixels = random.integers(256, size=(size[1], size[0], 3), dtype=np.uint8)
                Image.fromarray(pixels).convert(mode).save(tmp_path / name / label / f"{number}.{suffix}")
        return tmp_path / name

    return write
