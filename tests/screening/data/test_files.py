"""Lines, tables, FASTA and matrices of numbers."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stillroom.errors import InputError
from stillroom.screening.data._files import file_in, read_fasta, read_lines, read_rows, separator
from stillroom.screening.data._matrices import aligned, read_matrix, read_named_matrix

NAMED = "\tx\ty\na\t1\t0.5\nb\t0.25\t1\n"


def written(folder: Path, text: str | bytes, name: str = "file.txt") -> Path:
    file = folder / name
    content = text if isinstance(text, bytes) else text.encode()
    file.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    return file


def test_rows_are_numbered_as_an_editor_shows_them(tmp_path: Path) -> None:
    file = written(tmp_path, '\ufeffa,b\r\n\r\n"one\r\ntwo", x \r\n,\r\n3,4')
    assert list(read_rows(file, ",")) == [(1, ["a", "b"]), (3, ["one\r\ntwo", "x"]), (6, ["3", "4"])]


def test_gzipped_files_are_read_and_found(tmp_path: Path) -> None:
    file = written(tmp_path, NAMED, "m.txt.gz")
    assert file_in(tmp_path, "absent.txt", "m.txt") == file
    assert np.array_equal(read_named_matrix(file).values, [[1, 0.5], [0.25, 1]])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"ok\nf\xe4lt\n", "row 2 is no UTF-8 text"),
        ("a.csv", "x,y\n".encode("utf-16"), "row 1 is no UTF-8 text"),
    ],
)
def test_a_wrong_encoding_is_refused_with_its_row(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    with pytest.raises(InputError, match=message):
        list(read_lines(written(tmp_path, content, name)))


def test_what_is_no_gzip_or_is_cut_short_is_refused(tmp_path: Path) -> None:
    plain = tmp_path / "plain.gz"
    plain.write_bytes(b"plain text")
    cut = tmp_path / "cut.gz"
    cut.write_bytes(gzip.compress(bytes(range(97, 123)) * 400)[:-20])
    for file in (plain, cut):
        with pytest.raises(InputError, match="damaged gzip"):
            list(read_lines(file))
    with pytest.raises(InputError, match="cannot read"):
        list(read_lines(tmp_path / "absent"))


def test_an_open_quote_is_refused_with_its_row(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="row 2 cannot be read as a table"):
        list(read_rows(written(tmp_path, 'a,b\n"open,1\n2,3\n'), ","))


@pytest.mark.parametrize("delimiter", ["\t", ";", ","])
def test_the_separator_is_the_commonest_of_the_first_line(tmp_path: Path, delimiter: str) -> None:
    assert separator(written(tmp_path, "\n" + delimiter.join("abc") + "\n1,2;3\n")) == delimiter


@given(
    st.dictionaries(
        st.text("abcXYZ019:|_", min_size=1), st.text("ACDEFGHIKLMNPQRSTVWY", min_size=1, max_size=200), min_size=1
    )
)
@settings(max_examples=30, deadline=None)
def test_fasta_comes_back_whatever_the_width_of_its_lines(
    tmp_path_factory: pytest.TempPathFactory, sequences: dict[str, str]
) -> None:
    lines = []
    for name, text in sequences.items():
        lines += [f">{name} some words", *(text[at : at + 60] for at in range(0, len(text), 60)), ""]
    assert read_fasta(written(tmp_path_factory.mktemp("fasta"), "\n".join(lines))) == sequences


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("MKV\n", "row 1 is no FASTA"),
        (">a\nMK\n>a\nMV\n", "rows 1 and 3 are both headers of 'a'"),
        (">a\n>b\nMV\n", "row 1: 'a' has no sequence"),
        ("> \nMV\n", "row 1: the header has no name"),
    ],
)
def test_damaged_fasta_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_fasta(written(tmp_path, text))


def test_a_row_of_numbers_may_end_with_a_tab(tmp_path: Path) -> None:
    found = read_matrix(written(tmp_path, "1\tnan\t\n2\t3\t\n"), missing=True)
    assert np.array_equal(found, [[1, np.nan], [2, 3]], equal_nan=True)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1 2\n3\n", "row 2 has 1 numbers; the rows before have 2"),
        ("1 2\n\n3 x\n", "row 3: value 2 is 'x', not a number"),
        ("1 nan\n", "row 1: value 2 is nan; it must be finite"),
        ("1 inf\n", "row 1: value 2 is inf"),
        ("\n", "is empty"),
    ],
)
def test_damaged_matrices_are_refused_with_the_row(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_matrix(written(tmp_path, text))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("\tx\ty\n", "is empty"),
        ("x\ty\na\t1\n", "row 1 must be an empty cell and then the names"),
        ("\tx\ty\na\t1\n", "row 2 has 1 values for 2 columns"),
        ("\tx\tx\na\t1\t1\n", "2 columns are named 'x'"),
        ("\tx\na\t1\na\t2\n", "2 rows are named 'a'"),
        ("\tx\na\tone\n", "row 2: value 1 is 'one'"),
    ],
)
def test_damaged_named_matrices_are_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_named_matrix(written(tmp_path, text))


@given(st.permutations("abcde"), st.permutations("abcde"))
@settings(max_examples=30, deadline=None)
def test_a_matrix_is_put_in_order_by_its_names(rows: list[str], columns: list[str]) -> None:
    from stillroom.screening.data._matrices import NamedMatrix

    names = list("abcde")
    values = np.arange(25.0).reshape(5, 5)
    at = {name: place for place, name in enumerate(names)}
    shuffled = values[np.ix_([at[name] for name in rows], [at[name] for name in columns])]
    found, reordered = aligned(NamedMatrix(Path("m"), rows, columns, shuffled, []), names, "o")
    assert np.array_equal(found, values)
    assert reordered == (rows != names or columns != names)
