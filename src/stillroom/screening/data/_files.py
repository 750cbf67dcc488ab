"""Text files, plain or gzipped: lines, rows of tables, FASTA; every complaint names the row an editor shows."""

from __future__ import annotations

import csv
import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path

from stillroom.errors import InputError

__all__ = ["Row", "file_in", "needed_file", "read_fasta", "read_lines", "read_rows", "separator"]

Row = tuple[int, list[str]]  # number of the row in the file, counted from 1, and its cells


def file_in(folder: Path, *names: str) -> Path | None:
    """Return the first of these files that is in the folder, plain or with ``.gz`` behind its name."""
    for name in names:
        for path in (folder / name, folder / f"{name}.gz"):
            if path.is_file():
                return path
    return None


def needed_file(path: Path) -> Path:
    """Return the path of a file, with ``~`` resolved.

    Raises:
        InputError: There is no such file.
    """
    path = path.expanduser()
    if not path.is_file():
        raise InputError(f"there is no file {path} (looked in {Path.cwd()})")
    return path


def read_lines(file: Path) -> Iterator[tuple[int, str]]:
    """Yield number (from 1) and text of every line of UTF-8, its end included; ``.gz`` is decompressed on the way.

    Raises:
        InputError: The file cannot be read or holds something else than UTF-8 text.
    """
    number = 0
    try:
        with gzip.open(file) if file.suffix == ".gz" else file.open("rb") as stream:
            for number, line in enumerate(stream, 1):
                yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError:
        raise InputError(f"{file}, row {number} is no UTF-8 text; save the file as UTF-8") from None
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(f"{file} is a damaged gzip file: {error}") from None
    except OSError as error:
        raise InputError(f"cannot read {file}: {error.strerror or error}") from None


def read_rows(file: Path, delimiter: str, *, quoted: bool = True) -> Iterator[Row]:
    """Yield every row of a table that is not blank, cells without surrounding blanks.

    Args:
        file: The table.
        delimiter: What separates the cells.
        quoted: Whether ``"`` encloses cells; else it is a character like any other.

    Raises:
        InputError: The file cannot be read as such a table.
    """
    reader = csv.reader(
        (line for _, line in read_lines(file)),
        delimiter=delimiter,
        quoting=csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE,
        strict=quoted,
    )
    while True:
        number = reader.line_num + 1  # a quoted cell may hold line breaks: a row is named by its first line
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise InputError(f"{file}, row {number} cannot be read as a table: {error}") from None
        if cells is None:
            return
        cells = [cell.strip() for cell in cells]
        if any(cells):
            yield number, cells


def separator(file: Path) -> str:
    """Return what separates the cells of a table's first line: the commonest of tab, semicolon and comma."""
    header = next((line for _, line in read_lines(file) if line.strip()), "")
    return max("\t;,", key=header.count)


def read_fasta(file: Path) -> dict[str, str]:
    """Read sequences by name, the first word of each header.

    Raises:
        InputError: The file is no FASTA, or a name has no sequence or stands twice; the line names the row.
    """
    sequences: dict[str, list[str]] = {}
    rows: dict[str, int] = {}
    name = None
    for number, text in read_lines(file):
        line = text.strip()
        if line.startswith(">"):
            name = next(iter(line[1:].split()), "")
            if not name:
                raise InputError(f"{file}, row {number}: the header has no name")
            if name in rows:
                raise InputError(f"{file}, rows {rows[name]} and {number} are both headers of {name!r}; keep one")
            sequences[name], rows[name] = [], number
        elif line and name is None:
            raise InputError(f"{file}, row {number} is no FASTA: it begins without a header, which starts with >")
        elif line and name is not None:
            sequences[name].append("".join(line.split()))
    for name, parts in sequences.items():
        if not parts:
            raise InputError(f"{file}, row {rows[name]}: {name!r} has no sequence")
    if not sequences:
        raise InputError(f"{file} is empty")
    return {name: "".join(parts) for name, parts in sequences.items()}
