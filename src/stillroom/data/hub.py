"""Data sets of the Hugging Face hub, and local folders in its formats."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from stillroom.data.decode import Files
from stillroom.data.images import Source, read_encoded
from stillroom.errors import InputError, MissingExtraError

__all__ = ["read_hub"]

_TEST_NAMES = ("test", "validation", "valid", "val")


@dataclass(frozen=True)
class Column:
    """Encoded images in a column of a ``datasets.Dataset``, which maps its file instead of loading it."""

    rows: Any
    name: str
    origin: str

    def __len__(self) -> int:
        """Count the images."""
        return len(self.rows)

    def read(self, index: int) -> bytes:
        """Return the bytes in the cell, or of the file it points to."""
        cell = self.rows[index][self.name]
        if isinstance(cell, dict):
            cell = cell["bytes"] if cell["bytes"] is not None else Files((Path(cell["path"]),)).read(0)
        if not isinstance(cell, bytes):
            raise InputError(f"{self.where(index)} holds no image")
        return cell

    def where(self, index: int) -> str:
        """Return the data set's name and the row."""
        return f"{self.origin}, row {index}"


def read_hub(name: str, *, image_size: int | None) -> Source:
    """Read a data set by its hub name, or a local folder of parquet files or images, with ``datasets``.

    The image column is the one of type Image (or bytes), the label column the one of type ClassLabel with the most
    classes, or a column of integers called label.

    Args:
        name: Hub name or path.
        image_size: Side to resize to; needed when images differ in size.

    Raises:
        InputError: The data set cannot be loaded, or its columns are not an image and a class.
    """
    try:
        import datasets
    except ImportError as error:
        raise MissingExtraError("datasets", "vision") from error
    try:
        loaded = datasets.load_dataset(name)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"cannot load the data set {name!r}: {reason}") from error
    if "train" not in loaded:
        raise InputError(f"the data set {name!r} has no split called train; it has {', '.join(loaded)}")
    image, label = _columns(datasets, loaded["train"].features, name)
    test_name = next((split for split in _TEST_NAMES if split in loaded), None)
    feature = loaded["train"].features[label]
    train_target = _target(loaded["train"], label, f"{name} train")
    names = getattr(feature, "names", None) or [str(value) for value in range(len(set(train_target.tolist())))]
    train = read_encoded(_cells(datasets, loaded["train"], image, f"{name} train"), train_target, image_size)
    if test_name is None:
        return Source(tuple(names), train, None)
    origin = f"{name} {test_name}"
    test_rows = loaded[test_name]
    test = read_encoded(
        _cells(datasets, test_rows, image, origin), _target(test_rows, label, origin), image_size, like=train
    )
    return Source(tuple(names), train, test)


def _columns(datasets: Any, features: Any, name: str) -> tuple[str, str]:
    binary = (datasets.Value("binary"), datasets.Value("large_binary"))
    images = [column for column, kind in features.items() if isinstance(kind, datasets.Image) or kind in binary]
    labels = [column for column, kind in features.items() if isinstance(kind, datasets.ClassLabel)]
    if not labels and "int" in str(getattr(features.get("label"), "dtype", "")):
        labels = ["label"]
    if len(images) != 1 or not labels:
        kinds = ", ".join(f"{column} ({type(kind).__name__})" for column, kind in features.items())
        raise InputError(f"the data set {name!r} needs one image column and a class label; its columns are {kinds}")
    return images[0], max(labels, key=lambda column: getattr(features[column], "num_classes", 0))


def _cells(datasets: Any, rows: Any, column: str, origin: str) -> Column:
    rows = rows.select_columns([column])
    if isinstance(rows.features[column], datasets.Image):
        rows = rows.cast_column(column, datasets.Image(decode=False))
    return Column(rows, column, origin)


def _target(rows: Any, column: str, origin: str) -> torch.Tensor:
    values = rows.data.column(column)  # the whole column at once; row by row would decode the images beside it
    if values.null_count:
        raise InputError(f"{origin} has rows without a label")
    return torch.tensor(values.to_pylist(), dtype=torch.int64)
