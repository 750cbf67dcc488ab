"""CIFAR-10 and CIFAR-100 in the layouts they are found in.

A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch

from stillroom.data.decode import Blobs
from stillroom.data.images import Source, TensorImages, read_encoded
from stillroom.errors import InputError, MissingExtraError

__all__ = ["CIFAR10", "CIFAR100", "read_cifar"]

CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CIFAR100 = tuple(
    """
    apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can castle
    caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant
    flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree
    motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate
    poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake spider
    squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip turtle
    wardrobe whale willow_tree wolf woman worm
    """.split()  # noqa: SIM905 - as a list it would take a hundred lines
)
_PIXELS = 3 * 32 * 32


def read_cifar(folder: Path, classes: tuple[str, ...], *, image_size: int | None, allow_pickle: bool) -> Source:
    """Read CIFAR from its binary layout, from parquet, or, if allowed, from its pickles.

    Args:
        folder: Folder of the files, or the one above it.
        classes: ``CIFAR10`` or ``CIFAR100``; says which of the two it is.
        image_size: Side to resize parquet's images to.
        allow_pickle: Let torchvision unpickle the Python layout.

    Raises:
        InputError: No layout is there, a file is damaged, or only pickles are there and they are not allowed.
    """
    if classes == CIFAR10:
        labels, binary, pickled = 1, "cifar-10-batches-bin", "cifar-10-batches-py"
        train, test = [f"data_batch_{part}.bin" for part in range(1, 6)], "test_batch.bin"
    else:
        labels, binary, pickled = 2, "cifar-100-binary", "cifar-100-python"
        train, test = ["train.bin"], "test.bin"
    for place in (folder, folder / binary):
        if (place / test).is_file():
            return Source(
                classes, _read_binary((place / file for file in train), labels), _read_binary([place / test], labels)
            )
    tables = sorted(folder.rglob("*.parquet"))
    if tables:
        return _read_tables(folder, tables, classes, image_size)
    for place in (folder, folder.parent):
        if (place / pickled).is_dir() and (place == folder or folder.name == pickled):
            return _read_pickles(place, classes, allow_pickle)
    raise InputError(f"{folder} holds CIFAR in no known layout: neither {test}, nor *.parquet, nor {pickled}/")


def _read_binary(files: Iterable[Path], labels: int) -> TensorImages:
    """Records of 1 or 2 label bytes (the last is the fine one) and 3072 pixels, channel by channel."""
    parts = []
    for file in files:
        try:
            content = np.fromfile(file, dtype=np.uint8)
        except OSError as error:
            raise InputError(f"cannot read {file}: {error.strerror}") from error
        if content.size == 0 or content.size % (labels + _PIXELS):
            raise InputError(f"{file} is damaged: {content.size} bytes are no whole number of {labels + _PIXELS}")
        parts.append(content.reshape(-1, labels + _PIXELS))
    records = torch.from_numpy(np.concatenate(parts))
    return TensorImages(records[:, labels:].reshape(-1, 3, 32, 32), records[:, labels - 1].long())


def _read_tables(folder: Path, tables: list[Path], classes: tuple[str, ...], image_size: int | None) -> Source:
    test = [table for table in tables if "test" in table.name]
    train = [table for table in tables if "train" in table.name]
    if not train or not test:
        raise InputError(f"{folder} has parquet files, but not both *train*.parquet and *test*.parquet")
    train_cells, train_target = _read_table(train)
    test_cells, test_target = _read_table(test)
    train_images = read_encoded(train_cells, train_target, image_size)
    return Source(classes, train_images, read_encoded(test_cells, test_target, image_size, like=train_images))


def _read_table(files: list[Path]) -> tuple[Blobs, torch.Tensor]:
    try:
        import pyarrow as pa
        import pyarrow.compute as pc
        import pyarrow.parquet as pq
    except ImportError as error:
        raise MissingExtraError("pyarrow", "vision") from error
    cells: list[bytes] = []
    labels: list[int] = []
    for file in files:
        try:
            names = pq.read_schema(file).names
            image = next((name for name in ("image", "img") if name in names), None)
            label = next((name for name in ("label", "fine_label") if name in names), None)
            if image is None or label is None:
                raise InputError(f"{file} lacks a column image (or img) or label (or fine_label); it has {names}")
            table = pq.read_table(file, columns=[image, label])
        except (OSError, pa.ArrowInvalid) as error:
            raise InputError(f"{file} is no intact parquet file: {str(error).splitlines()[0]}") from error
        column = table[image]
        if pa.types.is_struct(column.type):  # the hub wraps the bytes with a file name
            column = pc.struct_field(column, "bytes")
        if column.null_count or table[label].null_count:
            raise InputError(f"{file} has rows without image or label")
        cells += column.to_pylist()
        labels += table[label].to_pylist()
    return Blobs(cells, files[0].name if len(files) == 1 else str(files[0].parent)), torch.tensor(labels)


def _read_pickles(root: Path, classes: tuple[str, ...], allow_pickle: bool) -> Source:
    if not allow_pickle:
        raise InputError(
            f"CIFAR in {root} consists of pickles, which can run code when opened; "
            "fetch the binary version, or give data.allow_pickle if you trust the files"
        )
    try:
        from torchvision import datasets
    except ImportError as error:
        raise MissingExtraError("torchvision", "vision") from error
    reader = datasets.CIFAR10 if classes == CIFAR10 else datasets.CIFAR100
    splits = []
    for train in (True, False):
        try:
            split = reader(
                str(root), train=train
            )  # compares the files' MD5 with the published ones before it opens them
        except RuntimeError as error:
            raise InputError(f"CIFAR in {root} is incomplete or damaged: {error}") from error
        splits.append(
            TensorImages(torch.from_numpy(split.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(split.targets))
        )
    return Source(classes, splits[0], splits[1])
