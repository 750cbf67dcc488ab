"""CIFAR in its layouts, on small files of the same format."""

from __future__ import annotations

import io
import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from stillroom.data.cifar import CIFAR10, CIFAR100
from stillroom.data.images import ImageData
from stillroom.data.options import DataOptions
from stillroom.data.sources import load_data
from stillroom.errors import InputError


def load(name: str, folder: Path, **options: object) -> ImageData:
    return load_data(DataOptions(name=f"{name}:{folder}", **options))


def records(labels: list[list[int]]) -> tuple[bytes, np.ndarray]:
    pixels = np.random.default_rng(len(labels)).integers(256, size=(len(labels), 3, 32, 32), dtype=np.uint8)
    rows = [bytes(label) + image.tobytes() for label, image in zip(labels, pixels, strict=True)]
    return b"".join(rows), pixels


def write_binary10(folder: Path) -> np.ndarray:
    parts = [records([[label] for label in range(part, part + 2)]) for part in range(5)]
    for number, (content, _) in enumerate(parts, start=1):
        (folder / f"data_batch_{number}.bin").write_bytes(content)
    (folder / "test_batch.bin").write_bytes(records([[9], [0]])[0])
    return np.concatenate([pixels for _, pixels in parts])


def write_parquet(folder: Path, split: str, labels: list[int | None], *, wrapped: bool = False) -> np.ndarray:
    folder.mkdir(exist_ok=True)
    pixels = np.random.default_rng(3).integers(256, size=(len(labels), 32, 32, 3), dtype=np.uint8)
    cells = []
    for image in pixels:
        stream = io.BytesIO()
        Image.fromarray(image).save(stream, "PNG")
        cells.append({"bytes": stream.getvalue(), "path": None} if wrapped else stream.getvalue())
    names = ("img", "fine_label") if wrapped else ("image", "label")
    pq.write_table(pa.table(dict(zip(names, (cells, labels), strict=True))), folder / f"{split}-0.parquet")
    return pixels


def test_the_class_names_are_whole_and_distinct() -> None:
    assert (len(CIFAR10), len(set(CIFAR10))) == (10, 10)
    assert (len(CIFAR100), len(set(CIFAR100))) == (100, 100)
    assert sorted(CIFAR100) == list(CIFAR100)  # CIFAR-100 numbers its fine classes alphabetically


def test_the_binary_layout_of_cifar10_is_read_in_file_order(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-10-batches-bin"
    folder.mkdir()
    pixels = write_binary10(folder)
    for place in (folder, tmp_path):
        data = load("cifar10", place)
        assert torch.equal(data.train.pixels, torch.from_numpy(pixels))
        assert data.train.target.tolist() == [0, 1, 1, 2, 2, 3, 3, 4, 4, 5]
        assert data.test.target.tolist() == [9, 0]
        assert data.classes == CIFAR10


def test_the_binary_layout_of_cifar100_takes_the_fine_label(tmp_path: Path) -> None:
    content, pixels = records([[1, 40], [2, 99]])
    (tmp_path / "train.bin").write_bytes(content)
    (tmp_path / "test.bin").write_bytes(content)
    data = load("cifar100", tmp_path)
    assert data.train.target.tolist() == [40, 99]
    assert torch.equal(data.train.pixels, torch.from_numpy(pixels))


@pytest.mark.parametrize("wrapped", [False, True])
def test_parquet_is_read_with_plain_and_with_wrapped_cells(tmp_path: Path, wrapped: bool) -> None:
    pixels = write_parquet(tmp_path, "train", [0, 5, 9], wrapped=wrapped)
    write_parquet(tmp_path, "test", [1, 2], wrapped=wrapped)
    data = load("cifar10", tmp_path)
    assert torch.equal(data.train.pixels, torch.from_numpy(pixels).permute(0, 3, 1, 2))
    assert data.train.target.tolist() == [0, 5, 9]


def test_damaged_binary_files_are_refused(tmp_path: Path) -> None:
    write_binary10(tmp_path)
    file = tmp_path / "data_batch_3.bin"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(InputError, match=r"data_batch_3\.bin is damaged: 6145 bytes are no whole number of 3073"):
        load("cifar10", tmp_path)
    file.unlink()
    with pytest.raises(InputError, match=r"cannot read \S*data_batch_3\.bin"):
        load("cifar10", tmp_path)


def test_damaged_or_incomplete_parquet_is_refused(tmp_path: Path) -> None:
    write_parquet(tmp_path, "train", [0, 1, 2])
    with pytest.raises(InputError, match=r"not both \*train\*\.parquet and \*test\*\.parquet"):
        load("cifar10", tmp_path)
    write_parquet(tmp_path, "test", [0, 12])
    with pytest.raises(InputError, match=r"test: image 1 has label 12, outside the 10 classes \(0\.\.9\)"):
        load("cifar10", tmp_path)
    write_parquet(tmp_path, "test", [0, None])
    with pytest.raises(InputError, match="rows without image or label"):
        load("cifar10", tmp_path)
    pq.write_table(pa.table({"image": [b"no image"], "label": [0]}), tmp_path / "test-0.parquet")
    with pytest.raises(InputError, match=r"^test-0\.parquet, row 0 is not an image Pillow can read$"):
        load("cifar10", tmp_path)
    (tmp_path / "test-0.parquet").write_bytes((tmp_path / "train-0.parquet").read_bytes()[:500])
    with pytest.raises(InputError, match=r"^\S*test-0\.parquet is no intact parquet file: [^\n]*$"):
        load("cifar10", tmp_path)
    pq.write_table(pa.table({"picture": [b""]}), tmp_path / "test-0.parquet")
    with pytest.raises(InputError, match=r"lacks a column image \(or img\)"):
        load("cifar10", tmp_path)


def test_pickles_are_refused_unless_allowed_and_then_still_checked(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    (folder / "data_batch_1").write_bytes(b"cos\nsystem\n(S'exit 1'\ntR.")
    for place in (tmp_path, folder):
        with pytest.raises(InputError, match=r"consists of pickles.*data\.allow_pickle"):
            load("cifar10", place)
        with pytest.raises(InputError, match=r"incomplete or damaged"):  # torchvision compares the MD5 first
            load("cifar10", place, allow_pickle=True)


def test_allowed_pickles_give_the_pixels_of_the_binary_layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    binary, pickled = tmp_path / "binary", tmp_path / "cifar-10-batches-py"
    binary.mkdir()
    pickled.mkdir()
    write_binary10(binary)
    for file in binary.iterdir():
        rows = np.frombuffer(file.read_bytes(), dtype=np.uint8).reshape(-1, 3073)
        batch = {"data": rows[:, 1:], "labels": rows[:, 0].tolist()}
        (pickled / file.stem).write_bytes(pickle.dumps(batch))
    (pickled / "batches.meta").write_bytes(pickle.dumps({"label_names": list(CIFAR10)}))
    monkeypatch.setattr(
        "torchvision.datasets.cifar.check_integrity", lambda *_: True
    )  # these are not the published files
    ours, theirs = load("cifar10", binary), load("cifar10", tmp_path, allow_pickle=True)
    for left, right in [(ours.train, theirs.train), (ours.test, theirs.test)]:
        assert torch.equal(left.pixels, right.pixels)
        assert torch.equal(left.target, right.target)


def test_a_folder_without_cifar_says_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"neither test_batch\.bin, nor \*\.parquet, nor cifar-10-batches-py/"):
        load("cifar10", tmp_path)
