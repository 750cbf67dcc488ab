"""Tables of one's own."""

from __future__ import annotations

import sys
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stillroom.errors import InputError, MissingExtraError
from stillroom.screening.data.sources import load_interactions
from stillroom.screening.data.tables import read_table
from stillroom.screening.options import ScreeningDataOptions
from stillroom.screening.similarities import with_similarities

ROWS = ("smiles,sequence,label", "CCO,MKVLA,1", "CCO,MKVIA,0", "CCN,MKVLA,", "CCN,MKVIA,1")
NAMED = ("Drug,SMILES,Target,Sequence,Label", "a,CCO,x,MKVLA,1", "b,CCN,y,MKVLA,0")


def table(path: Path, *rows: str, name: str = "own.csv") -> Path:
    (path / name).write_text("\n".join(rows) + "\n")
    return path / name


def test_a_table_is_read_and_an_empty_label_is_not_measured(tmp_path: Path) -> None:
    data = read_table(table(tmp_path, *ROWS))
    assert (data.name, data.drugs, data.targets) == ("own.csv", ("D1", "D2"), ("T1", "T2"))
    assert (data.smiles, data.sequences) == (("CCO", "CCN"), ("MKVLA", "MKVIA"))
    assert data.labels.tolist() == [[1, 0], [0, 1]]
    assert data.measured is not None
    assert data.measured.tolist() == [[True, True], [False, True]]
    assert data.notes == ()


def test_names_are_taken_and_targets_may_share_a_sequence(tmp_path: Path) -> None:
    file = table(tmp_path, *NAMED)
    data = read_table(file)
    assert (data.drugs, data.targets, data.sequences) == (("a", "b"), ("x", "y"), ("MKVLA", "MKVLA"))
    noted = load_interactions(ScreeningDataOptions(name=str(file)))
    assert noted.notes == ("2 targets share their sequence with others",)


def test_columns_with_other_names_are_read_when_named(tmp_path: Path) -> None:
    file = table(tmp_path, "Drug\tTarget\tY", "CCO\tMKV\t1", "CCN\tMKV\t0", name="own.tsv")
    data = read_table(file, columns=("smiles=drug", "sequence=Target", "label = Y", "drug=Drug"))
    assert data.labels.tolist() == [[1], [0]]
    assert data.smiles == ("CCO", "CCN")


def test_affinities_are_labelled_by_the_threshold(tmp_path: Path) -> None:
    rows = ("smiles,sequence,affinity", "CCO,MKV,100", "CCO,MKV,10", "CCN,MKV,>1000", "CCC,MKV,", "CCF,MKV,<2000")
    file = table(tmp_path, *rows)
    data = read_table(file, threshold=50)
    assert data.labels.tolist() == [[1], [0], [0], [0]]  # sqrt(100 * 10) = 32
    assert data.measured is not None
    assert data.measured[:, 0].tolist() == [True, True, False, False]
    assert read_table(file, threshold=50, interacts="at-least").labels.tolist() == [[1], [1], [0], [0]]
    with pytest.raises(InputError, match=r"give data\.threshold"):
        read_table(file)


def test_a_repeated_pair_is_counted_once(tmp_path: Path) -> None:
    data = read_table(table(tmp_path, *ROWS, "CCO,MKVLA,1", "CCO,MKVLA,"))
    assert data.labels.sum() == 2
    assert data.notes == ("1 rows repeat a pair with the same label; dropped",)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ((*ROWS, "CCO,MKVLA,0"), "rows 2 and 6: the same pair is labelled 1 and 0"),
        ((*ROWS, "", "CCO,MKVAA,yes"), "row 7: the label is 'yes'"),
        ((*ROWS, "CCO,MKVAA,0.5"), "row 6: the label is '0.5'"),
        ((*ROWS, "CCO,MKVAA"), "row 6 has 2 cells; the header has 3"),
        ((*ROWS, "CCO,MKVAA,1,1"), "row 6 has 4 cells; the header has 3"),
        ((*ROWS, ",MKVAA,1"), "row 6: smiles is empty"),
        ((*ROWS, "CCO,,1"), "row 6: sequence is empty"),
        ((*ROWS, "CCO,MK7,1"), "row 6: the sequence has letters that are no residues: '7'"),
        ((*NAMED, "a,CCC,x,MKVLA,1"), "rows 2 and 4: the drug 'a' has two SMILES"),
        ((*NAMED, "a,CCO,x,MKV,1"), "rows 2 and 4: the target 'x' has two sequences"),
        ((*NAMED, "c,CCO,x,MKVLA,1"), "rows 2 and 4: the drugs 'a' and 'c' have the same SMILES"),
        ((*NAMED, ",CCO,x,MKVLA,1"), "row 4: drug is empty"),
    ],
)
def test_a_bad_row_is_refused_with_its_number_or_skipped(tmp_path: Path, rows: tuple[str, ...], message: str) -> None:
    file = table(tmp_path, *rows)
    with pytest.raises(InputError, match=message) as caught:
        read_table(file)
    assert "\n" not in str(caught.value)
    bad = len([row for row in rows if row]) - 1
    data = read_table(file, on_bad_rows="skip")
    assert data.notes[-1].startswith(f"1 of {bad} rows skipped, the first: {file}, row")
    # Nothing of the row is left behind.
    without = read_table(table(tmp_path, *rows[:-1], name="without.csv"))
    assert (data.drugs, data.targets) == (without.drugs, without.targets)
    assert np.array_equal(data.labels, without.labels)


def test_a_structure_that_cannot_be_read_is_refused_with_its_row(tmp_path: Path) -> None:
    file = table(tmp_path, *ROWS, "C1CC,MKVLA,1", "C1CC,MKVIA,1")
    with pytest.raises(InputError, match=r"row 6: 'C1CC' is no SMILES .* \(1 more rows are bad\)"):
        read_table(file)
    assert read_table(file, on_bad_rows="skip").drugs == ("D1", "D2")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("smiles,sequence,label\n", "is empty but for its header"),
        ("smiles,label\nCCO,1\n", "row 1: there is no column 'sequence' among 'smiles', 'label'"),
        ("smile,sequence,label\nCCO,MKV,1\n", "there is no column 'smiles'"),
        ("smiles,sequence\nCCO,MKV\n", "there is no column 'label'"),
        ("smiles,SMILES,sequence,label\nCCO,CCO,MKV,1\n", "2 columns are named 'smiles'"),
        ("smiles,sequence,label\nCCO,MKV,0\n", "none of the 1 measured pairs interacts; label known"),
        ("smiles,sequence,label\nCCO,MKV,x\nCCN,MKV,x\n", "row 2: the label is 'x'"),
    ],
)
@pytest.mark.parametrize("on_bad_rows", ["refuse", "skip"])
def test_a_table_without_use_is_refused(tmp_path: Path, text: str, message: str, on_bad_rows: Any) -> None:
    file = tmp_path / "own.csv"
    file.write_text(text)
    with pytest.raises(InputError, match=message):
        read_table(file, on_bad_rows=on_bad_rows)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (("smiles",), "must be like smiles=NAME"),
        (("smile=x",), "did you mean"),
        (("label=y",), "there is no column 'y'"),
    ],
)
def test_wrong_names_of_columns_are_refused(tmp_path: Path, columns: tuple[str, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_table(table(tmp_path, *ROWS), columns=columns)


@pytest.mark.parametrize("affinity", ["0", "-1", "12 nM"])
def test_a_concentration_is_a_positive_number(tmp_path: Path, affinity: str) -> None:
    with pytest.raises(InputError, match="row 2: the affinity is"):
        read_table(table(tmp_path, "smiles,sequence,affinity", f"CCO,MKV,{affinity}"), threshold=10)


def test_the_sequences_may_come_from_a_fasta(tmp_path: Path) -> None:
    file = table(tmp_path, "smiles,target,label", "CCO,x,1", "CCN,y,0")
    fasta = tmp_path / "t.fasta"
    fasta.write_text(">x\nMKVLA\n>y\nMKVIA\n")
    bare = ScreeningDataOptions(name=str(file), drug_kernel="maccs")
    with pytest.raises(InputError, match="neither similarities nor sequences"):
        with_similarities(load_interactions(bare), bare)
    data = load_interactions(ScreeningDataOptions(name=str(file), fasta=fasta))
    assert data.sequences == ("MKVLA", "MKVIA")


PAIRS = st.dictionaries(
    st.tuples(st.sampled_from(("CCO", "CCN", "CCC", "c1ccccc1")), st.sampled_from(("MKV", "MKI", "MAA"))),
    st.sampled_from(("0", "1", "")),
    min_size=1,
)


@given(PAIRS.filter(lambda pairs: "1" in pairs.values()), st.randoms())
@settings(max_examples=40, deadline=None)
def test_the_order_of_rows_changes_the_order_of_drugs_and_targets_alone(
    tmp_path_factory: pytest.TempPathFactory, pairs: dict[tuple[str, str], str], random: Random
) -> None:
    items = list(pairs.items())
    random.shuffle(items)
    rows = [f"{smiles},{sequence},{label}" for (smiles, sequence), label in items]
    data = read_table(table(tmp_path_factory.mktemp("own"), ROWS[0], *rows))
    assert data.smiles is not None
    assert data.sequences is not None
    assert data.measured is not None
    for (smiles, sequence), label in items:
        place = data.smiles.index(smiles), data.sequences.index(sequence)
        assert data.measured[place] == (label != "")
        assert data.labels[place] == (label == "1")
    assert data.measured.sum() == sum(label != "" for label in pairs.values())


def test_without_rdkit_structures_are_not_looked_into_until_they_are_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "rdkit", None)
    data = read_table(table(tmp_path, *ROWS, "C1CC,MKVLA,1"))
    assert data.smiles == ("CCO", "CCN", "C1CC")
    with pytest.raises(MissingExtraError, match="rdkit is not installed"):
        with_similarities(data, ScreeningDataOptions())
