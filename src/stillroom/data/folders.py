"""Folders of images, one sub-folder a class."""

from __future__ import annotations

from pathlib import Path

import torch

from stillroom.data.decode import Files
from stillroom.data.images import Source, read_encoded
from stillroom.errors import InputError

__all__ = ["IMAGE_SUFFIXES", "read_folder"]

IMAGE_SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".webp"})
_TEST_NAMES = ("test", "val", "valid", "validation")


def read_folder(folder: Path, *, image_size: int | None) -> Source:
    """Read ``folder/train`` and ``folder/test`` (or val) of class folders, or class folders that are to be split.

    Other files are ignored; classes are sorted by name.

    Args:
        folder: The folder.
        image_size: Side to resize to; needed when images differ in size.

    Raises:
        InputError: There are no class folders, one holds no image, the splits' classes differ, or an image is damaged.
    """
    if not (folder / "train").is_dir():
        classes = _classes(folder)
        files, target = _files(folder, classes)
        return Source(classes, read_encoded(files, target, image_size), None)
    classes = _classes(folder / "train")
    files, target = _files(folder / "train", classes)
    test_folder = next((folder / name for name in _TEST_NAMES if (folder / name).is_dir()), None)
    if test_folder is None:
        return Source(classes, read_encoded(files, target, image_size), None)
    if extra := sorted(set(_classes(test_folder)) - set(classes)):
        raise InputError(f"{test_folder} has a class {extra[0]!r} that {folder / 'train'} lacks")
    if absent := sorted(set(classes) - set(_classes(test_folder))):
        raise InputError(f"{test_folder} lacks the class {absent[0]!r} of {folder / 'train'}")
    test_files, test_target = _files(test_folder, classes)
    train = read_encoded(files, target, image_size)
    return Source(classes, train, read_encoded(test_files, test_target, image_size, like=train))


def _classes(folder: Path) -> tuple[str, ...]:
    names = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not names:
        raise InputError(f"{folder} has no class folders; images belong in {folder}/CLASS/*.png (or jpg, bmp, webp)")
    return tuple(names)


def _files(folder: Path, classes: tuple[str, ...]) -> tuple[Files, torch.Tensor]:
    paths: list[Path] = []
    target: list[int] = []
    for label, name in enumerate(classes):
        found = sorted(path for path in (folder / name).iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
        if not found:
            raise InputError(f"the class folder {folder / name} holds no image (png, jpg, jpeg, bmp, webp)")
        paths += found
        target += [label] * len(found)
    return Files(paths), torch.tensor(target)
