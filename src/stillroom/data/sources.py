"""Where data sets come from: names, folders, and what becomes of them by the user's options."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F

from stillroom.data.images import ImageData, ImageSet, Source, TensorImages, mean_and_std
from stillroom.data.options import Augment, DataOptions
from stillroom.data.split import per_class_share, random_stream, set_aside, subset_per_class
from stillroom.errors import InputError, MissingExtraError, unknown_name

__all__ = ["data_root", "load_data"]

DIGITS = tuple("0123456789")
FASHION = ("T-shirt/top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")

TEST_SHARE = 0.2  # of every class, where a source brings no test images
# Purposes of the random streams of one seed; the loaders' are 0 and 1.
_TEST, _SUBSET, _HOLDOUT = 2, 3, 4


def data_root() -> Path | None:
    """Return the folder of data sets: ``STILLROOM_DATA``, else ``../shared/data`` where there is one."""
    named = os.environ.get("STILLROOM_DATA")
    if named:
        return Path(named)
    beside = Path("..") / "shared" / "data"
    return beside if beside.is_dir() else None


def load_data(options: DataOptions, *, least_classes: int = 2) -> ImageData:
    """Load a data set and apply the options: resize, subset, held-out split.

    Mean and standard deviation are those of all training images, so they do not move with the subset, and a student
    of a small subset and its teacher see the same normalisation. A source without test images gives up a fifth of
    every class for them; that split is fixed.

    Args:
        options: Which data set, and how much of it.
        least_classes: Classes it must have; a classifier needs two.

    Raises:
        InputError: The name is unknown, files are missing or damaged, or the data cannot honour an option.

    Example:
        >>> data = load_data(DataOptions(name="digits", per_class=10))
        >>> data.shape, len(data.classes), len(data.train)
        ((1, 8, 8), 10, 100)
    """
    source = _read(options)
    classes = len(source.classes)
    if classes < least_classes:
        raise InputError(f"{options.name} has {classes} class; a classifier needs at least two")
    _check_labels(source.train, classes, f"{options.name} train")
    train, test = source.train, source.test
    if test is None:
        kept, aside = set_aside(train.target, classes, TEST_SHARE, random_stream(0, _TEST))
        if len(aside) == 0:
            raise InputError(
                f"{options.name} has too few images to split off a test set; give every class three or more"
            )
        train, test = train.subset(kept), train.subset(aside)
    else:
        _check_labels(test, classes, f"{options.name} test")
    train, test = _resize(train, options.image_size), _resize(test, options.image_size)
    if train.shape != test.shape:
        raise InputError(
            f"{options.name}: training images are {train.shape}, test images {test.shape}; they must agree"
        )
    mean, std = mean_and_std(train)
    train = _subset(train, source.classes, options)
    holdout = None
    if options.holdout > 0:
        kept, aside = set_aside(train.target, classes, options.holdout, random_stream(options.seed, _HOLDOUT))
        if len(aside) == 0:
            raise InputError(
                f"data.holdout {options.holdout} of {len(train)} training images sets none aside; raise it"
            )
        train, holdout = train.subset(kept), train.subset(aside)
    return ImageData(
        name=options.name,
        classes=source.classes,
        mean=mean,
        std=std,
        shape=train.shape,
        augment=_augment(options, train.shape[0]),
        train=train,
        holdout=holdout,
        test=test,
    )


def _read_digits(options: DataOptions, path: str) -> Source:
    if path:
        raise InputError("digits comes with scikit-learn and takes no path; for a folder of images use folder:PATH")
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise MissingExtraError("scikit-learn", "vision") from error
    bunch = load_digits()
    grey = (torch.from_numpy(bunch.images) * (255 / 16)).round().to(torch.uint8)  # 17 levels
    return Source(DIGITS, TensorImages(grey[:, None], torch.from_numpy(bunch.target).long()), None)


def _read_mnist(options: DataOptions, path: str) -> Source:
    from stillroom.data.idx import read_idx_folder

    return read_idx_folder(_folder("mnist", path), DIGITS)


def _read_fashion(options: DataOptions, path: str) -> Source:
    from stillroom.data.idx import read_idx_folder

    return read_idx_folder(_folder("fashion-mnist", path), FASHION)


def _read_idx(options: DataOptions, path: str) -> Source:
    from stillroom.data.idx import read_idx_folder

    return read_idx_folder(_needed("idx", path), None)


def _read_cifar10(options: DataOptions, path: str) -> Source:
    from stillroom.data.cifar import CIFAR10, read_cifar

    folder = _folder("cifar10", path)
    return read_cifar(folder, CIFAR10, image_size=options.image_size, allow_pickle=options.allow_pickle)


def _read_cifar100(options: DataOptions, path: str) -> Source:
    from stillroom.data.cifar import CIFAR100, read_cifar

    folder = _folder("cifar100", path)
    return read_cifar(folder, CIFAR100, image_size=options.image_size, allow_pickle=options.allow_pickle)


def _read_folder(options: DataOptions, path: str) -> Source:
    from stillroom.data.folders import read_folder

    return read_folder(_needed("folder", path), image_size=options.image_size)


def _read_hub(options: DataOptions, path: str) -> Source:
    from stillroom.data.hub import read_hub

    if not path:
        raise InputError("hf needs the name of a data set: hf:OWNER/NAME")
    return read_hub(path, image_size=options.image_size)


_READERS: dict[str, Callable[[DataOptions, str], Source]] = {
    "digits": _read_digits,
    "mnist": _read_mnist,
    "fashion-mnist": _read_fashion,
    "idx": _read_idx,
    "cifar10": _read_cifar10,
    "cifar100": _read_cifar100,
    "folder": _read_folder,
    "hf": _read_hub,
}


def _read(options: DataOptions) -> Source:
    kind, _, path = options.name.partition(":")
    if kind not in _READERS:
        raise unknown_name("data set", kind, _READERS)
    return _READERS[kind](options, path)


def _folder(name: str, path: str) -> Path:
    """Find the folder of a named set: the given path, or the one of that name among the data sets."""
    if path:
        return _needed(name, path)
    root = data_root()
    if root is None:
        raise InputError(
            f"no folder of data sets: neither STILLROOM_DATA nor ../shared/data is there; "
            f"set STILLROOM_DATA to the folder that holds {name}/, or name it as {name}:PATH"
        )
    if not (root / name).is_dir():
        raise InputError(
            f"no data set {name!r} at {root / name}; put it there, or set STILLROOM_DATA, or give {name}:PATH"
        )
    return root / name


def _needed(kind: str, path: str) -> Path:
    if not path:
        raise InputError(f"{kind} needs a folder: {kind}:PATH")
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise InputError(f"there is no folder {folder} (looked in {Path.cwd()})")
    return folder


def _check_labels(images: ImageSet, classes: int, origin: str) -> None:
    outside = ((images.target < 0) | (images.target >= classes)).nonzero()
    if len(outside):
        first = int(outside[0])
        raise InputError(
            f"{origin}: image {first} has label {int(images.target[first])}, outside the {classes} classes "
            f"(0..{classes - 1})"
        )


def _resize(images: ImageSet, side: int | None) -> ImageSet:
    """Resize images that came decoded; what came encoded already has the size."""
    if side is None or images.shape[1:] == (side, side) or not isinstance(images, TensorImages):
        return images
    height, width = images.shape[1:]
    cut = min(height, width)  # a square around the centre, as the decoder takes
    top, left = (height - cut) // 2, (width - cut) // 2
    square = images.pixels[:, :, top : top + cut, left : left + cut]
    return TensorImages(F.interpolate(square, (side, side), mode="bilinear", antialias=True), images.target)


def _subset(train: ImageSet, classes: tuple[str, ...], options: DataOptions) -> ImageSet:
    if options.per_class is not None:
        counts = torch.bincount(train.target, minlength=len(classes))
        scarce = int(counts.argmin())
        if options.per_class > counts[scarce]:
            raise InputError(
                f"data.per_class is {options.per_class}, but class {classes[scarce]!r} has only {int(counts[scarce])} "
                "training images; lower it"
            )
        quota = torch.full_like(counts, options.per_class)
    elif options.fraction < 1.0:
        quota = per_class_share(train.target, len(classes), options.fraction, minimum=1)
    else:
        return train
    drawn, _ = subset_per_class(train.target, quota, random_stream(options.seed, _SUBSET))
    return train.subset(drawn)


def _augment(options: DataOptions, channels: int) -> Augment:
    if options.augment != "auto":
        return options.augment
    # Grey sets are mostly characters, and a mirrored character is another one; clothes may be mirrored.
    return "crop-flip" if channels == 3 or options.name.startswith("fashion-mnist") else "crop"
