"""Matrices in text files, with or without names of their rows and columns."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from stillroom.errors import InputError
from stillroom.screening._checks import Array
from stillroom.screening.data._files import read_lines

__all__ = ["NamedMatrix", "aligned", "read_matrix", "read_named_matrix"]


class NamedMatrix(NamedTuple):
    """A matrix and the names of its rows and columns."""

    file: Path
    rows: list[str]
    columns: list[str]
    values: Array
    numbers: list[int]  # of each row in the file, counted from 1


def read_matrix(file: Path, *, missing: bool = False) -> Array:
    """Read numbers separated by blanks or tabs, a row each line.

    Args:
        file: The file, plain or gzipped.
        missing: Whether ``nan`` may stand for an unknown value.

    Shapes:
        -> [rows, columns].

    Raises:
        InputError: A row differs in length or holds something else than finite numbers; the line names it.
    """
    values: list[Array] = []
    for number, line in read_lines(file):
        cells = line.split()
        if not cells:
            continue
        row = np.array(_numbers(cells, file, number, missing))
        if values and len(row) != len(values[0]):
            raise InputError(f"{file}, row {number} has {len(row)} numbers; the rows before have {len(values[0])}")
        values.append(row)
    if not values:
        raise InputError(f"{file} is empty")
    return np.array(values)


def read_named_matrix(file: Path) -> NamedMatrix:
    """Read a tab-separated matrix whose first row and first column are names; the first cell is empty.

    Raises:
        InputError: A row differs in length, a value is no finite number, or a name stands twice.
    """
    columns: list[str] | None = None
    names: list[str] = []
    values: list[Array] = []
    numbers: list[int] = []
    for number, line in read_lines(file):
        if not line.strip():
            continue
        first, *cells = (cell.strip().strip('"') for cell in line.rstrip("\r\n").split("\t"))
        if columns is None:
            if first or not cells:
                raise InputError(
                    f"{file}, row {number} must be an empty cell and then the names of the columns, separated by tabs; "
                    f"it begins with {first[:20]!r}"
                )
            columns = cells
            continue
        if len(cells) != len(columns):
            raise InputError(f"{file}, row {number} has {len(cells)} values for {len(columns)} columns")
        names.append(first)
        numbers.append(number)
        values.append(np.array(_numbers(cells, file, number, False)))
    if columns is None or not values:
        raise InputError(f"{file} is empty")
    for kind, group in (("column", columns), ("row", names)):
        name, count = Counter(group).most_common(1)[0]
        if count > 1:
            raise InputError(f"{file}: {count} {kind}s are named {name!r}; a name may stand once")
    return NamedMatrix(file, names, columns, np.array(values), numbers)


def aligned(matrix: NamedMatrix, names: Sequence[str], origin: str) -> tuple[Array, bool]:
    """Return a square matrix in the order of names, and whether it stood in another.

    Args:
        matrix: The matrix.
        names: What its rows and columns must be named.
        origin: Where these names are from.

    Raises:
        InputError: Its rows or columns have other names; the line says which.
    """
    for kind, group in (("column", matrix.columns), ("row", matrix.rows)):
        lacking = sorted(set(names) - set(group))
        if lacking:
            raise InputError(f"{matrix.file} has no {kind} {lacking[0]!r}{_more(lacking)}, which {origin} has")
        extra = sorted(set(group) - set(names))
        if extra:
            raise InputError(f"{matrix.file} has a {kind} {extra[0]!r}{_more(extra)}, which {origin} has not")
    row = {name: place for place, name in enumerate(matrix.rows)}
    column = {name: place for place, name in enumerate(matrix.columns)}
    ordered: Array = matrix.values[np.ix_([row[name] for name in names], [column[name] for name in names])]
    return ordered, matrix.rows != list(names) or matrix.columns != list(names)


def _more(names: Sequence[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""


def _numbers(cells: Iterable[str], file: Path, number: int, missing: bool) -> list[float]:
    row = []
    for place, cell in enumerate(cells, 1):
        try:
            value = float(cell)
        except ValueError:
            raise InputError(f"{file}, row {number}: value {place} is {cell[:20]!r}, not a number") from None
        if not (math.isfinite(value) or (missing and math.isnan(value))):
            raise InputError(f"{file}, row {number}: value {place} is {cell}; it must be finite")
        row.append(value)
    return row
