"""Graphs of the user's own: an .npz file of arrays, or a folder with edges.csv and nodes.csv."""

from __future__ import annotations

import csv
import zipfile
import zlib
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from stillroom.errors import InputError, unknown_name
from stillroom.graphs._checks import SPLITS
from stillroom.graphs._features import csr
from stillroom.graphs._torch_geometric import Data
from stillroom.graphs.node_data import Source

__all__ = ["read_folder", "read_npz"]

_MASKS = tuple(f"{split}_mask" for split in SPLITS)
_SPARSE = ("x_data", "x_indices", "x_indptr", "x_shape")
_KEYS = ("edge_index", "y", "x", *_SPARSE, *_MASKS, "num_classes")
_NAMED = 20  # classes up to which a note lists their names


def read_npz(path: Path) -> Source:
    """Read one graph from an .npz file; nothing in it is unpickled.

    Its arrays are ``edge_index`` ([2, E], integers), ``y`` ([N] integers, -1 where unknown, or [N, C] zeros and ones),
    and the features: ``x`` ([N, F]), or as sparse CSR ``x_data``, ``x_indices``, ``x_indptr`` and ``x_shape``.
    ``train_mask``, ``val_mask`` and ``test_mask`` ([N], bool) and ``num_classes`` may be there.

    Raises:
        InputError: The file is damaged or holds pickles, or an array is missing, unknown or of the wrong kind.
    """
    if not path.is_file() or not zipfile.is_zipfile(path):
        raise InputError(f"{path} is no .npz file, which is a zip of arrays")
    try:
        with np.load(path, allow_pickle=False) as file:
            for name in file.files:
                if name not in _KEYS:
                    raise InputError(f"{path}: {unknown_name('array', name, _KEYS)}")
            arrays = {name: np.asarray(file[name]) for name in file.files}
    except InputError:
        raise
    except (OSError, EOFError, ValueError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        if "pickle" in str(error):
            raise InputError(f"{path} holds Python objects, not read; store plain arrays of numbers") from error
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise InputError(f"{path} is damaged: {reason}") from error
    for name in ("edge_index", "y", *(_SPARSE if "x_data" in arrays else ("x",))):
        if name not in arrays:
            raise InputError(f"{path} has no array {name!r}; it has {', '.join(sorted(arrays)) or 'none'}")
    for name, values in arrays.items():
        if values.dtype.kind not in "biuf":
            raise InputError(f"{path}: {name} is {values.dtype}; it must be numbers")
    graph = Data(edge_index=_tensor(arrays["edge_index"]), y=_tensor(arrays["y"]))
    graph.x = _sparse(arrays, path) if "x_data" in arrays else _tensor(arrays["x"])
    for name in _MASKS:
        if name in arrays:
            graph[name] = _tensor(arrays[name])
    return Source([graph], int(arrays["num_classes"].flat[0]) if arrays.get("num_classes", np.empty(0)).size else None)


def _tensor(values: NDArray[np.generic]) -> torch.Tensor:
    if values.dtype.kind == "u":  # torch knows few operations on unsigned integers
        values = values.astype(np.int64)
    return torch.from_numpy(np.ascontiguousarray(values.astype(values.dtype.newbyteorder("="), copy=False)))


def _sparse(arrays: dict[str, NDArray[np.generic]], path: Path) -> torch.Tensor:
    data, indices, indptr, shape = (_tensor(arrays[name]) for name in _SPARSE)
    if shape.shape != (2,) or any(part.dim() != 1 for part in (data, indices, indptr)):
        raise InputError(f"{path}: x_shape must be two numbers, and x_data, x_indices and x_indptr one row each")
    if indices.dtype.is_floating_point or indptr.dtype.is_floating_point:
        raise InputError(f"{path}: x_indices and x_indptr must be integers")
    rows, columns = (int(size) for size in shape)
    try:
        return csr(indptr, indices, data.float(), (rows, columns), check=True)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def read_folder(folder: Path) -> Source:
    """Read one graph from ``edges.csv`` and ``nodes.csv``.

    ``edges.csv`` has the header ``source,target`` and an edge a line. ``nodes.csv`` has a column ``id`` (any text), a
    column ``label`` (any text; empty is unknown, several are separated by ``;``), may have a column ``split`` (train,
    val, test or empty) next, and every column after these is a feature, a number. Classes are numbered in the order of
    their names, or of their numbers.

    Raises:
        InputError: A file is missing or a line of it is wrong; the message names the line.
    """
    edges, nodes = folder / "edges.csv", folder / "nodes.csv"
    for file in (edges, nodes):
        if not file.is_file():
            raise InputError(f"{folder} has no {file.name}; a graph in a folder is edges.csv and nodes.csv")
    ids, labels, splits, features = _read_nodes(nodes)
    y, names = _number_labels(labels)
    graph = Data(x=torch.from_numpy(features), y=torch.from_numpy(y))
    if splits is not None:
        for split in SPLITS:
            graph[f"{split}_mask"] = torch.tensor([one == split for one in splits])
    graph.edge_index = _read_edges(edges, ids)
    numbered = names == [str(number) for number in range(len(names))]
    notes = () if numbered or len(names) > _NAMED else (f"classes 0 to {len(names) - 1} are {', '.join(names)}",)
    return Source([graph], len(names), notes)


def _read_edges(file: Path, ids: dict[str, int]) -> torch.Tensor:
    rows = _rows(file)
    line, header = next(rows, (1, []))
    if [name.lower() for name in header] != ["source", "target"]:
        raise InputError(f"{file}, line {line}: the header must be source,target, not {','.join(header)!r}")
    ends = array("q")
    for line, row in rows:
        if len(row) != 2:
            raise InputError(f"{file}, line {line} has {len(row)} columns; it must have two, source and target")
        for name in row:
            try:
                ends.append(ids[name])
            except KeyError:
                raise InputError(f"{file}, line {line}: there is no node {name!r} in nodes.csv") from None
    return torch.from_numpy(np.array(ends, dtype=np.int64).reshape(-1, 2).T.copy())


def _read_nodes(file: Path) -> tuple[dict[str, int], list[str], list[str] | None, NDArray[np.float32]]:
    """Return the position of every id, the labels, the splits if there is such a column, and the features."""
    rows = _rows(file)
    line, header = next(rows, (1, []))
    if [name.lower() for name in header[:2]] != ["id", "label"]:
        raise InputError(f"{file}, line {line}: the header must begin with id,label, not {','.join(header[:2])!r}")
    has_split = len(header) > 2 and header[2].lower() == "split"
    first = 3 if has_split else 2
    if len(header) == first:
        raise InputError(f"{file}, line {line}: there is no column of features after {header[-1]!r}")
    ids: dict[str, int] = {}
    labels: list[str] = []
    splits: list[str] = []
    values = array("f")
    for line, row in rows:
        if len(row) != len(header):
            raise InputError(f"{file}, line {line} has {len(row)} columns; the header has {len(header)}")
        name, label = row[:2]
        if ids.setdefault(name, len(ids)) != len(labels):
            raise InputError(f"{file}, line {line}: node {name!r} is there already; every id may occur once")
        labels.append(label)
        if has_split:
            splits.append(_split(row[2], label, f"{file}, line {line}"))
        try:
            values.extend(map(float, row[first:]))
        except ValueError:
            raise _no_number(row, header, first, f"{file}, line {line}") from None
    if not labels:
        raise InputError(f"{file} has no node")
    return ids, labels, splits if has_split else None, np.array(values, dtype=np.float32).reshape(len(labels), -1)


def _rows(file: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield line number and cells of every line that is not blank."""
    try:
        with open(file, encoding="utf-8-sig", newline="") as stream:
            reader = csv.reader(stream)
            for row in reader:
                cells = [cell.strip() for cell in row]
                if any(cells):
                    yield reader.line_num, cells
    except UnicodeDecodeError as error:
        raise InputError(f"{file} is no UTF-8 text: {error.reason} at byte {error.start}") from error
    except (OSError, csv.Error) as error:
        raise InputError(f"cannot read {file}: {getattr(error, 'strerror', None) or error}") from error


def _split(split: str, label: str, place: str) -> str:
    if split not in ("", *SPLITS):
        raise InputError(f"{place}: split is {split!r}; it must be train, val, test or empty")
    if split and not label:
        raise InputError(f"{place}: a node of split {split} has no label; give it one or leave its split empty")
    return split


def _no_number(row: Sequence[str], header: Sequence[str], first: int, place: str) -> InputError:
    for name, cell in zip(header[first:], row[first:], strict=True):
        try:
            float(cell)
        except ValueError:
            return InputError(f"{place}: feature {name!r} is {cell!r}, not a number")
    raise AssertionError("a cell is no number")


def _number_labels(labels: list[str]) -> tuple[NDArray[np.int64] | NDArray[np.float32], list[str]]:
    """Return classes [N] (-1 where empty), or zeros and ones [N, C] where a node has several, and the names."""
    each = [[name for one in label.split(";") if (name := one.strip())] for label in labels]
    names = sorted({name for several in each for name in several})
    if all(name.isdecimal() for name in names):
        names.sort(key=int)
    number = {name: place for place, name in enumerate(names)}
    if all(len(several) <= 1 for several in each):
        return np.array([number[several[0]] if several else -1 for several in each], dtype=np.int64), names
    y = np.zeros((len(each), len(names)), dtype=np.float32)
    for node, several in enumerate(each):
        y[node, [number[name] for name in several]] = 1
    return y, names
