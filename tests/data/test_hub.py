"""Hugging Face data sets, read from local folders."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image, Value

from stillroom.data.options import DataOptions
from stillroom.data.sources import load_data
from stillroom.errors import InputError

WriteImages = Callable[..., Path]


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def write_parquet(folder: Path, features: Features, split: str, files: list[Path], labels: list[int]) -> None:
    folder.mkdir(exist_ok=True)
    image, label = features
    rows = {image: [file.read_bytes() for file in files], label: labels}
    if isinstance(features[image], Image):
        rows[image] = [{"bytes": cell, "path": None} for cell in rows[image]]
    Dataset.from_dict(rows, features=features).to_parquet(folder / f"{split}.parquet")


def test_a_folder_of_images_reads_as_the_folder_source_reads_it(write_images: WriteImages) -> None:
    folder = write_images()
    ours, hub = (load_data(DataOptions(name=f"{kind}:{folder}")) for kind in ("folder", "hf"))
    assert hub.classes == ours.classes
    assert torch.equal(hub.train.target, ours.train.target)
    assert torch.equal(hub.train.pixels, ours.train.pixels)


@pytest.mark.parametrize("typed", [True, False])
def test_columns_are_found_by_type(write_images: WriteImages, tmp_path: Path, typed: bool) -> None:
    files = sorted(write_images().glob("*/*.png"))
    labels = [file.parent.name == "dog" for file in files]
    names = ("picture", "kind") if typed else ("picture", "label")
    kinds = (Image(), ClassLabel(names=["other", "dog"])) if typed else (Value("binary"), Value("uint8"))
    features = Features(dict(zip(names, kinds, strict=True)))
    for split in ("train", "validation"):
        write_parquet(tmp_path / "hub", features, split, files, labels)
    data = load_data(DataOptions(name=f"hf:{tmp_path / 'hub'}"))
    assert data.classes == (("other", "dog") if typed else ("0", "1"))
    assert len(data.test) == len(data.train) == 15
    assert data.train.target.tolist() == [int(label) for label in labels]


def test_labels_outside_the_classes_are_refused(write_images: WriteImages, tmp_path: Path) -> None:
    files = sorted(write_images().glob("*/*.png"))[:4]
    features = Features({"image": Value("binary"), "label": Value("int64")})
    write_parquet(tmp_path / "hub", features, "train", files, [0, 1, 7, 1])
    with pytest.raises(InputError, match=r"image 2 has label 7, outside the 3 classes \(0\.\.2\)"):
        load_data(DataOptions(name=f"hf:{tmp_path / 'hub'}"))


def test_a_data_set_without_label_column_is_refused_with_its_columns(write_images: WriteImages, tmp_path: Path) -> None:
    files = sorted(write_images().glob("*/*.png"))[:2]
    features = Features({"image": Image(), "height": Value("int64")})
    write_parquet(tmp_path / "hub", features, "train", files, [3, 4])
    with pytest.raises(InputError, match=r"its columns are image \(Image\), height \(Value\)"):
        load_data(DataOptions(name=f"hf:{tmp_path / 'hub'}"))


def test_a_folder_without_data_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    with pytest.raises(InputError, match=r"^cannot load the data set [^\n]*$"):
        load_data(DataOptions(name=f"hf:{tmp_path / 'none'}"))
    with pytest.raises(InputError, match="hf needs the name"):
        load_data(DataOptions(name="hf"))
