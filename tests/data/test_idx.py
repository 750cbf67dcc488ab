"""IDX files: what is read, and what is refused in one line."""

from __future__ import annotations

import gzip
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from stillroom.data.idx import read_idx, read_idx_folder
from stillroom.data.options import DataOptions
from stillroom.data.sources import load_data
from stillroom.errors import InputError

WriteIdx = Callable[..., Path]


def refused(folder: Path) -> str:
    with pytest.raises(InputError) as error:
        load_data(DataOptions(name=f"idx:{folder}"))
    message = str(error.value)
    assert "\n" not in message
    return message


def test_pixels_come_in_row_order(tmp_path: Path) -> None:
    file = tmp_path / "images-idx3-ubyte"
    file.write_bytes(struct.pack(">4I", 2051, 2, 2, 3) + bytes(range(12)))
    assert torch.equal(read_idx(file, 3), torch.arange(12, dtype=torch.uint8).view(2, 2, 3))


def test_gzipped_and_plain_files_give_the_same_set(write_idx: WriteIdx, tmp_path: Path) -> None:
    plain = read_idx_folder(write_idx("train-", [0, 1, 2, 1]), None)
    for file in list(tmp_path.iterdir()):
        file.with_name(file.name + ".gz").write_bytes(gzip.compress(file.read_bytes()))
        file.unlink()
    packed = read_idx_folder(tmp_path, None)
    assert torch.equal(plain.train.pixels, packed.train.pixels)
    assert torch.equal(plain.train.target, packed.train.target)


def test_train_and_t10k_are_the_two_splits(write_idx: WriteIdx) -> None:
    write_idx("train-", [0, 1, 2, 0, 1, 2])
    data = load_data(DataOptions(name=f"idx:{write_idx('t10k-', [2, 0])}"))
    assert (len(data.train), len(data.test), data.shape, data.classes) == (6, 2, (1, 5, 4), ("0", "1", "2"))
    assert data.test.target.tolist() == [2, 0]
    assert data.augment == "crop"


def test_a_single_pair_is_split_class_by_class(write_idx: WriteIdx) -> None:
    data = load_data(DataOptions(name=f"idx:{write_idx('train-', [0] * 10 + [1] * 20)}"))
    assert torch.bincount(data.test.target).tolist() == [2, 4]
    assert torch.bincount(data.train.target).tolist() == [8, 16]


def test_a_wrong_magic_number_is_refused(write_idx: WriteIdx) -> None:
    folder = write_idx("train-", [0, 1])
    shutil.copy(folder / "train-labels-idx1-ubyte", folder / "train-images-idx3-ubyte")
    message = refused(folder)
    assert "train-images-idx3-ubyte is" in message
    folder = write_idx("train-", [0] * 20)
    shutil.copy(folder / "train-labels-idx1-ubyte", folder / "train-images-idx3-ubyte")
    assert "its magic number is 2049, not 2051" in refused(folder)


@pytest.mark.parametrize("keep", [0, 3, 15, 16, 17, 39])
def test_a_file_cut_anywhere_is_refused(write_idx: WriteIdx, keep: int) -> None:
    folder = write_idx("train-", [0, 1])  # 16 bytes of header and 40 of pixels
    file = folder / "train-images-idx3-ubyte"
    file.write_bytes(file.read_bytes()[:keep])
    message = refused(folder)
    assert str(file) in message
    assert "cut short" in message or f"promises 40 bytes (2x5x4), only {keep - 16} follow" in message


@pytest.mark.parametrize("keep", [5, 30, 60])
def test_a_gzip_file_cut_anywhere_is_refused(write_idx: WriteIdx, keep: int) -> None:
    folder = write_idx("train-", [0, 1])
    file = folder / "train-images-idx3-ubyte"
    (folder / f"{file.name}.gz").write_bytes(gzip.compress(file.read_bytes())[:keep])
    file.unlink()
    assert f"{file}.gz is a damaged gzip file" in refused(folder)


def test_a_file_that_is_no_gzip_is_refused(write_idx: WriteIdx) -> None:
    folder = write_idx("train-", [0, 1])
    file = folder / "train-images-idx3-ubyte"
    file.rename(f"{file}.gz")
    assert "is a damaged gzip file" in refused(folder)


def test_bytes_after_the_last_image_are_refused(write_idx: WriteIdx) -> None:
    folder = write_idx("train-", [0, 1])
    with (folder / "train-images-idx3-ubyte").open("ab") as file:
        file.write(b"x")
    assert "promises 40 bytes (2x5x4), more follow" in refused(folder)


def test_a_header_that_promises_the_moon_costs_nothing(tmp_path: Path) -> None:
    file = tmp_path / "images-idx3-ubyte"
    file.write_bytes(struct.pack(">4I", 2051, 2**32 - 1, 2**32 - 1, 2**32 - 1) + bytes(10))
    with pytest.raises(InputError, match="only 10 follow"):
        read_idx(file, 3)


def test_counts_that_differ_are_refused(write_idx: WriteIdx, tmp_path: Path) -> None:
    folder = write_idx("train-", [0, 1, 1])
    labels = (folder / "train-labels-idx1-ubyte").read_bytes()
    write_idx("train-", [0, 1])
    (folder / "train-labels-idx1-ubyte").write_bytes(labels)
    assert "holds 2 images, but train-labels-idx1-ubyte 3 labels" in refused(folder)


def test_labels_outside_the_classes_are_refused(write_idx: WriteIdx) -> None:
    write_idx("t10k-", [0, 1])
    assert "train: image 2 has label 200, outside the 3 classes (0..2)" in refused(write_idx("train-", [0, 1, 200]))
    write_idx("train-", [0, 1, 0, 1])
    assert "test: image 1 has label 2, outside the 2 classes (0..1)" in refused(write_idx("t10k-", [0, 2]))


def test_missing_labels_and_empty_folders_are_refused(write_idx: WriteIdx, tmp_path: Path) -> None:
    assert "there are no IDX images" in refused(tmp_path)
    folder = write_idx("train-", [0, 1])
    (folder / "train-labels-idx1-ubyte").unlink()
    assert "train-labels-idx1-ubyte or train-labels-idx1-ubyte.gz is missing" in refused(folder)


def test_two_training_sets_in_one_folder_are_refused(write_idx: WriteIdx) -> None:
    write_idx("train-", [0, 1])
    assert "several IDX sets" in refused(write_idx("extra-", [0, 1]))
