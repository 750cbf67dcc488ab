"""Exports of ChEMBL and BindingDB."""

from __future__ import annotations

import csv
import gzip
import io
from collections.abc import Sequence
from pathlib import Path

import pytest

from stillroom.errors import InputError
from stillroom.screening.data.bindingdb import read_bindingdb
from stillroom.screening.data.chembl import read_chembl
from stillroom.screening.data.sources import load_interactions
from stillroom.screening.options import ScreeningDataOptions
from stillroom.screening.similarities import with_similarities

CHEMBL = (
    *("Molecule ChEMBL ID", "Molecule Name", "Smiles", "Standard Type", "Standard Relation", "Standard Value"),
    *("Standard Units", "pChEMBL Value", "Target ChEMBL ID"),
)
ACTIVITIES = (
    ("C1", "one", "CCO", "IC50", "'='", "1000", "nM", "6", "T1"),
    ("C1", "one", "CCO", "IC50", "'='", "1000.5", "nM", "5.99", "T2"),
    ("C2", 'the "second"', "CCN", "Ki", "'>'", "10", "uM", "", "T1"),
    ("C2", "", "CCN", "Kd", "'>'", "100", "nM", "", "T2"),
    ("C2", "", "CCN", "Kd", "", "", "", "7.2", "T2"),
    ("C3", "", "CCC", "Inhibition", "'='", "80", "%", "", "T1"),
    ("C3", "", "CCC", "Ki", "'='", "5", "ug.mL-1", "", "T1"),
    ("C4", "", "", "Ki", "'='", "5", "nM", "", "T1"),
    ("C5", "", "C1CC", "Ki", "'='", "5", "nM", "", "T1"),
    ("C1", "", "CCCl", "Ki", "'='", "5", "nM", "", "T1"),
    ("C6", "", "CCF", "Ki", "'='", "", "nM", "", "T1"),
)
BINDINGDB = (
    *("BindingDB Reactant_set_id", "Ligand SMILES", "BindingDB MonomerID", "Target Name", "Ki (nM)", "IC50 (nM)"),
    *("Kd (nM)", "EC50 (nM)", "Number of Protein Chains in Target (>1 implies a multichain complex)"),
    "BindingDB Target Chain Sequence",
)
MEASUREMENTS = (
    ("1", "CCO", "50", "Kinase", " 12", "", "", "", "1", "MKVLA"),
    ("2", "CCO", "50", "Kinase", "", ">10000", "", "", "1", "mkvia"),
    ("3", "CCN", "51", 'Protease "A"', "", "", "<0.5", "", "1", "MKVAA"),
    ("4", "CCN", "51", "Kinase", "", "500", "", "4000", "1", "MKVLA"),
    ("5", "CCC", "52", "Kinase", "", "", "", "", "1", "MKVLA"),
    ("6", "CCC", "52", "Complex", "5", "", "", "", "2", "MKVLA"),
    ("7", "", "53", "Kinase", "5", "", "", "", "1", "MKVLA"),
    ("8", "CCC", "52", "Kinase", "5", "", "", "", "1", "M1V"),
)


def chembl(
    path: Path, rows: Sequence[Sequence[str]] = ACTIVITIES, header: Sequence[str] = CHEMBL, by: str = ";"
) -> Path:
    text = io.StringIO()
    csv.writer(text, delimiter=by, quoting=csv.QUOTE_ALL).writerows([header, *rows])
    (path / "export.csv").write_text(text.getvalue(), encoding="utf-8-sig")
    return path / "export.csv"


def bindingdb(path: Path, rows: Sequence[Sequence[str]] = MEASUREMENTS, header: Sequence[str] = BINDINGDB) -> Path:
    (path / "export.tsv").write_text("".join("\t".join(row) + "\n" for row in (header, *rows)))
    return path / "export.tsv"


@pytest.mark.parametrize("by", [";", ",", "\t"])
def test_chembl_is_read_whatever_separates_its_cells(tmp_path: Path, by: str) -> None:
    data = read_chembl(chembl(tmp_path, by=by))
    assert (data.drugs, data.targets, data.smiles) == (("C1", "C2"), ("T1", "T2"), ("CCO", "CCN"))
    assert data.labels.tolist() == [[1, 0], [0, 1]]
    assert data.measured is not None
    assert data.measured.all()
    assert data.sequences is None
    left_out = data.notes[-1]
    assert left_out.startswith("left out of 11 rows: ")
    for reason in (
        "another type of activity (1)",
        "no value in molar units (2)",
        "no structure or target (1)",
        "a SMILES that cannot be read (1)",
        "another structure under the same name (1)",
    ):
        assert reason in left_out
    assert any("left out: 1 bound" in note for note in data.notes)


def test_the_columns_of_the_service_are_known_too(tmp_path: Path) -> None:
    header = ["canonical_smiles", "molecule_chembl_id", "pchembl_value", "target_chembl_id"]
    file = chembl(tmp_path, [("CCO", "C1", "6.0", "T1"), ("CCO", "C1", "5.99", "T2"), ("CCN", "C2")], header, ",")
    assert read_chembl(file).labels.tolist() == [[1, 0]]
    assert read_chembl(file, threshold=1100).labels.tolist() == [[1, 1]]


def test_sequences_of_chembl_come_from_a_fasta(tmp_path: Path) -> None:
    (tmp_path / "t.fasta").write_text(">T1 a\nMKVLA\n>T2\nMKVIA\n")
    name = f"chembl:{chembl(tmp_path)}"
    bare = ScreeningDataOptions(name=name)
    with pytest.raises(InputError, match=r"data\.fasta"):
        with_similarities(load_interactions(bare), bare)
    options = ScreeningDataOptions(name=name, fasta=tmp_path / "t.fasta", target_kernel="spectrum")
    data = with_similarities(load_interactions(options), options)
    assert data.drug_similarity is not None
    assert data.drug_similarity.shape == (2, 2)


@pytest.mark.parametrize(
    ("rows", "header", "message"),
    [
        (ACTIVITIES, CHEMBL[1:], "has no column 'molecule chembl id'"),
        (ACTIVITIES, CHEMBL[:4] + CHEMBL[8:], "has neither 'pchembl value' nor"),
        ([], CHEMBL, "none of 0 rows holds"),
        (ACTIVITIES[5:8], CHEMBL, r"none of 3 rows holds .*: another type of activity \(1\)"),
        (ACTIVITIES[1:3], CHEMBL, "none of the 2 measured pairs interacts; change data.threshold"),
    ],
)
def test_exports_of_chembl_without_use_are_refused(
    tmp_path: Path, rows: Sequence[Sequence[str]], header: Sequence[str], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        read_chembl(chembl(tmp_path, [row[: len(header)] for row in rows], header))


@pytest.mark.parametrize("newer", [False, True])
def test_bindingdb_is_read(tmp_path: Path, newer: bool) -> None:
    header = [name + " 1" if newer and name.endswith("Sequence") else name for name in BINDINGDB]
    file = bindingdb(tmp_path, header=[*header, "BindingDB Target Chain Sequence 2" if newer else header[-1]])
    packed = tmp_path / "export.tsv.gz"
    packed.write_bytes(gzip.compress(file.read_bytes()))
    data = read_bindingdb(packed)
    assert (data.drugs, data.targets) == (("50", "51"), ("Kinase #1", "Kinase #2", 'Protease "A"'))
    assert data.sequences == ("MKVLA", "MKVIA", "MKVAA")
    assert data.labels.tolist() == [[1, 0, 0], [0, 0, 1]]  # sqrt(500 * 4000) = 1414 is above 1000
    assert data.measured is not None
    assert data.measured.tolist() == [[True, True, False], [True, False, True]]
    assert "1 pair of these measured on both sides of the threshold" in data.notes
    for reason in (
        "no value (1)",
        "a target of several chains (1)",
        "no structure or sequence (1)",
        "a sequence with letters that are no residues (1)",
    ):
        assert reason in data.notes[-1]


def test_a_bindingdb_row_with_too_many_cells_is_left_out(tmp_path: Path) -> None:
    data = read_bindingdb(bindingdb(tmp_path, [*MEASUREMENTS[:1], (*MEASUREMENTS[1], "more")]))
    assert data.shape == (1, 1)
    assert data.notes[-1] == "left out of 2 rows: more cells than columns (1)"


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (BINDINGDB[:-1], "has no column 'bindingdb target chain sequence'"),
        ([name.replace("(nM)", "") for name in BINDINGDB], "has none of the columns ki"),
    ],
)
def test_other_tables_are_no_export_of_bindingdb(tmp_path: Path, header: Sequence[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_bindingdb(bindingdb(tmp_path, header=header))


def test_empty_exports_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "empty.csv"
    file.touch()
    for read in (read_chembl, read_bindingdb):
        with pytest.raises(InputError, match="is empty"):
            read(file)
