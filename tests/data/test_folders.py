"""Class folders and encoded images: what is read, streamed, and refused in one line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.io import ImageReadMode, decode_image

from stillroom.data import images as images_module
from stillroom.data.images import ImageData, StreamedImages, TensorImages
from stillroom.data.loaders import EvalLoader, TrainLoader
from stillroom.data.options import DataOptions
from stillroom.data.sources import load_data
from stillroom.errors import InputError

WriteImages = Callable[..., Path]


def load(folder: Path, **options: object) -> ImageData:
    return load_data(DataOptions(name=f"folder:{folder}", **options))


def refused(folder: Path, **options: object) -> str:
    with pytest.raises(InputError) as error:
        load(folder, **options)
    message = str(error.value)
    assert "\n" not in message
    return message


def test_train_and_test_folders_give_the_pixels_torchvision_reads(write_images: WriteImages, tmp_path: Path) -> None:
    write_images("set/train")
    write_images("set/test", each=2)
    data = load(tmp_path / "set")
    assert data.classes == ("cat", "dog", "owl")
    assert (data.shape, len(data.train), len(data.test), data.augment) == ((3, 7, 9), 15, 6, "crop-flip")
    assert data.train.target.tolist() == [0] * 5 + [1] * 5 + [2] * 5
    expected = decode_image(str(tmp_path / "set/train/dog/2.png"), ImageReadMode.RGB)
    assert torch.equal(data.train.pixels[7], expected)


@pytest.mark.parametrize("suffix", ["png", "bmp", "webp", "jpg", "jpeg", "PNG"])
def test_every_listed_format_is_read(write_images: WriteImages, suffix: str) -> None:
    data = load(write_images(suffix=suffix))
    assert len(data.train) + len(data.test) == 15


def test_a_folder_without_splits_gives_a_fifth_of_every_class_to_the_test_set(write_images: WriteImages) -> None:
    data = load(write_images(each=10))
    assert torch.bincount(data.test.target).tolist() == [2, 2, 2]
    again = load(write_images("copy", each=10), seed=5)
    assert torch.equal(data.test.pixels, again.test.pixels)  # the split does not follow the seed


def test_other_files_and_hidden_folders_are_ignored(write_images: WriteImages) -> None:
    folder = write_images()
    (folder / "cat" / "notes.txt").write_text("not an image")
    (folder / ".cache").mkdir()
    assert load(folder).classes == ("cat", "dog", "owl")


def test_grey_folders_have_one_channel_and_mixed_ones_three(write_images: WriteImages) -> None:
    grey = write_images("grey", mode="L")
    data = load(grey)
    assert (data.shape, data.augment) == ((1, 7, 9), "crop")
    mixed = write_images("mixed", mode="L", classes=("cat", "dog"))
    Image.new("RGB", (9, 7), (10, 20, 30)).save(mixed / "dog" / "0.png")
    assert load(mixed).shape == (3, 7, 9)
    Image.new("RGB", (9, 7), (10, 20, 30)).save(grey / "dog" / "3.png")
    assert "dog/3.png is in colour" in refused(grey)


def test_images_of_other_sizes_are_refused_unless_resized(write_images: WriteImages) -> None:
    folder = write_images()
    Image.new("RGB", (20, 40)).save(folder / "owl" / "4.png")
    assert "owl/4.png is 20x40, the first image 9x7; give data.image_size" in refused(folder)
    assert load(folder, image_size=6).shape == (3, 6, 6)


def test_resizing_keeps_proportions_and_cuts_around_the_centre(tmp_path: Path) -> None:
    stripes = np.zeros((8, 24, 3), dtype=np.uint8)
    stripes[:, 8:16] = 255  # the middle square is white, the sides black
    for label in ("a", "b"):
        (tmp_path / label).mkdir()
        for number in range(3):
            Image.fromarray(stripes).save(tmp_path / label / f"{number}.png")
    Image.new("RGB", (24, 8)).save(tmp_path / "a" / "black.png")
    data = load(tmp_path, image_size=4)
    pictures = torch.cat([data.train.pixels, data.test.pixels])
    inside = pictures[..., 1:3].flatten(1)  # the outer columns blend with what was cut off
    assert sorted(inside.unique(dim=1).flatten().tolist()) == [0] + [255] * 6


def test_streamed_images_give_the_batches_that_images_in_memory_give(
    write_images: WriteImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_images(each=7)
    held = load(folder, holdout=0.3)
    monkeypatch.setattr(images_module, "MEMORY_LIMIT", 0)
    streamed = load(folder, holdout=0.3)
    assert isinstance(held.train, TensorImages)
    assert isinstance(streamed.train, StreamedImages)
    assert (streamed.mean, streamed.std) == (held.mean, held.std)
    state = torch.get_rng_state()
    for loader_class, options in [
        (TrainLoader, {"seed": 1, "augment": "crop-flip", "rank": 1, "world_size": 2}),
        (EvalLoader, {}),
    ]:
        left, right = (
            list(loader_class(data.train, batch_size=3, mean=data.mean, std=data.std, **options).epoch(2, 1))
            for data in (held, streamed)
        )
        assert len(left) == len(right) > 0
        for one, two in zip(left, right, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    assert torch.equal(torch.get_rng_state(), state)  # worker processes take no seed from the model's stream


def test_a_damaged_image_met_while_streaming_gives_its_one_line(
    write_images: WriteImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_images()
    monkeypatch.setattr(images_module, "MEMORY_LIMIT", 0)
    data = load(folder)
    for file in (folder / "owl").iterdir():
        file.write_bytes(file.read_bytes()[:60])
    with pytest.raises(InputError, match=r"^\S*owl/\d\.png is a damaged image: [^\n]*$"):
        list(EvalLoader(data.train, batch_size=2, mean=data.mean, std=data.std))


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "text"])
def test_a_damaged_image_is_named(write_images: WriteImages, damage: str) -> None:
    folder = write_images(size=(30, 30))
    file = folder / "dog" / "3.png"
    content = bytearray(file.read_bytes())
    if damage == "flip":
        content[len(content) // 2] ^= 0xFF
    file.write_bytes({"cut": content[:200], "flip": content, "empty": b"", "text": b"hello"}[damage])
    assert "dog/3.png is" in refused(folder)


def test_an_image_that_would_decompress_without_bound_is_refused(
    write_images: WriteImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_images()
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    Image.new("RGB", (30, 30)).save(folder / "cat" / "1.png")
    assert "cat/1.png is refused: it would decompress to more pixels than Pillow's limit" in refused(folder)


def test_an_image_of_sixteen_bits_is_refused(write_images: WriteImages) -> None:
    folder = write_images()
    Image.fromarray(np.full((7, 9), 40_000, dtype=np.uint16)).save(folder / "cat" / "1.png")
    assert "cat/1.png has more than 8 bits per channel" in refused(folder)


def test_folders_without_images_or_classes_are_refused(write_images: WriteImages, tmp_path: Path) -> None:
    assert "there is no folder" in refused(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    assert "has no class folders" in refused(tmp_path / "empty")
    folder = write_images()
    (folder / "newt").mkdir()
    (folder / "newt" / "readme.md").write_text("soon")
    assert "class folder" in refused(folder)
    assert "newt holds no image" in refused(folder)
    assert "has 1 class" in refused(write_images("one", classes=("cat",)))
    assert "too few images to split off a test set" in refused(write_images("few", each=1))


def test_splits_with_other_classes_are_refused(write_images: WriteImages, tmp_path: Path) -> None:
    write_images("more/train")
    write_images("more/val", classes=("cat", "dog", "owl", "yak"))
    assert "has a class 'yak' that" in refused(tmp_path / "more")
    write_images("less/train")
    write_images("less/test", classes=("cat", "dog"))
    assert "lacks the class 'owl'" in refused(tmp_path / "less")


def test_a_fingerprint_moves_with_every_pixel_and_label(write_images: WriteImages) -> None:
    data = load(write_images()).train
    pixels, target = data.pixels.clone(), data.target.clone()
    assert TensorImages(pixels, target).fingerprint() == data.fingerprint()
    pixels[0, 0, 0, 0] ^= 1
    assert TensorImages(pixels, target).fingerprint() != data.fingerprint()
    assert TensorImages(data.pixels, 2 - target).fingerprint() != data.fingerprint()
    assert data.subset(torch.arange(3)).fingerprint() != data.fingerprint()
