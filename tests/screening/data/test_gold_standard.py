"""The gold standard's layout: made-up files and the real ones."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

from stillroom.errors import InputError
from stillroom.screening.data.gold_standard import read_gold_standard
from stillroom.screening.data.sources import load_interactions
from stillroom.screening.options import ScreeningDataOptions
from stillroom.screening.similarities import with_similarities

FILES = {
    "t_admat_dgc.txt": "\tD1\tD2\tD3\nhsa1\t1\t0\t0\nhsa2\t0\t1\t0\n",
    "t_simmat_dc.txt": "\tD1\tD2\tD3\nD1\t1\t0.2\t0.3\nD2\t0.4\t1\t0.1\nD3\t0.3\t0.1\t1\n",
    "t_simmat_dg.txt": "\thsa1\thsa2\nhsa1\t1\t0.5\nhsa2\t0.5\t1\n",
}
COUNTS = {"nr": (54, 26, 90), "gpcr": (223, 95, 635), "ic": (210, 204, 1476), "e": (445, 664, 2926)}


def folder(path: Path, **changed: str | None) -> Path:
    for name, text in FILES.items():
        text = changed.get(name.removesuffix(".txt"), text)
        if text is not None:
            (path / name).write_text(text)
    return path


def test_it_is_read_with_drugs_as_rows(tmp_path: Path) -> None:
    data = read_gold_standard(folder(tmp_path), "t")
    assert (data.drugs, data.targets) == (("D1", "D2", "D3"), ("hsa1", "hsa2"))
    assert data.labels.tolist() == [[1, 0], [0, 1], [0, 0]]
    assert data.new_drugs.tolist() == [2]
    assert data.measured is None
    assert data.drug_similarity is not None
    assert data.drug_similarity[0, 1] == pytest.approx(0.3)
    assert data.notes == ("similarity of drugs: not symmetric, entries differ by up to 0.2; their mean is taken",)


def test_names_in_another_order_are_put_in_that_of_the_interactions(tmp_path: Path) -> None:
    plain = read_gold_standard(folder(tmp_path), "t")
    swapped = "\tD3\tD1\tD2\nD2\t0.1\t0.4\t1\nD1\t0.3\t1\t0.2\nD3\t1\t0.3\t0.1\n"
    data = read_gold_standard(folder(tmp_path, t_simmat_dc=swapped), "t")
    assert np.array_equal(data.drug_similarity, plain.drug_similarity)
    assert data.notes[0] == "t_simmat_dc.txt is put in the order of t_admat_dgc.txt"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("t_admat_dgc", None, "there are no interactions t_admat_dgc.txt"),
        ("t_admat_dgc", FILES["t_admat_dgc.txt"].replace("hsa2\t0", "hsa2\t2"), "row 3: 'hsa2' and 'D1' have 2"),
        ("t_simmat_dg", FILES["t_simmat_dg.txt"].replace("hsa2", "hsa3"), "has no column 'hsa2', which t_admat"),
        ("t_simmat_dg", "\thsa1\thsa2\thsa3\n" + "".join(f"hsa{i}\t1\t1\t1\n" for i in (1, 2, 3)), "a column 'hsa3'"),
        ("t_simmat_dg", "\thsa1\thsa2\nhsa1\t1\t1\n", "has no row 'hsa2'"),
    ],
)
def test_files_that_do_not_fit_are_refused(tmp_path: Path, name: str, text: str | None, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_gold_standard(folder(tmp_path, **{name: text}), "t")


def test_a_missing_similarity_is_computed_from_a_fasta_with_names_as_kegg_writes_them(tmp_path: Path) -> None:
    folder(tmp_path, t_simmat_dg=None)
    name = f"gold:{tmp_path}/t"
    with pytest.raises(InputError, match=r"give data\.target_similarity_file, or data\.fasta"):
        with_similarities(load_interactions(ScreeningDataOptions(name=name)), ScreeningDataOptions(name=name))
    (tmp_path / "t.fasta").write_text(">hsa:1 one\nMKVLA\n>hsa2\nMKVIA\n>hsa:3\nMMMM\n")
    options = ScreeningDataOptions(name=name, fasta=tmp_path / "t.fasta", target_kernel="spectrum")
    data = load_interactions(options)
    assert data.sequences == ("MKVLA", "MKVIA")
    similarity = with_similarities(data, options).target_similarity
    assert similarity is not None
    assert similarity[0, 1] == pytest.approx(1 / 3)  # one of three 3-mers is common


@pytest.mark.parametrize(
    ("text", "message"),
    [(">hsa1\nMKV\n", "has no sequence of 'hsa2'"), (">hsa1\nMKV\n>hsa2\nM1V\n", "'hsa2' has letters .* '1'")],
)
def test_a_fasta_that_does_not_fit_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "t.fasta").write_text(text)
    with pytest.raises(InputError, match=message):
        load_interactions(ScreeningDataOptions(name=f"gold:{folder(tmp_path)}/t", fasta=tmp_path / "t.fasta"))


@pytest.fixture
def data_folder(shared_data: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("STILLROOM_DATA", str(shared_data))
    return shared_data / "dti-gold-standard"


@pytest.mark.shared_data
@pytest.mark.parametrize("name", COUNTS)
def test_the_real_sets_have_the_published_counts(data_folder: Path, name: str) -> None:
    data = load_interactions(ScreeningDataOptions(name=name))
    assert (*data.shape, data.labels.sum()) == COUNTS[name]
    assert len(data.new_drugs) == len(data.new_targets) == 0
    assert any("not symmetric" in note for note in data.notes)
    assert (data.target_similarity is None) == (name == "e")


@pytest.mark.shared_data
def test_the_enzymes_are_refused_in_one_line_until_their_similarity_is_given(data_folder: Path, tmp_path: Path) -> None:
    bare = ScreeningDataOptions(name="e")
    enzymes = load_interactions(bare)
    with pytest.raises(InputError, match=r"^e has neither .* data\.target_similarity_file, or data\.fasta.*$"):
        with_similarities(enzymes, bare)
    names = enzymes.targets[::-1]
    rows = ["\t".join(["", *names])]
    rows += ["\t".join([name, *("1" if name == other else "0.5" for other in names)]) for name in names]
    file = tmp_path / "made_up.txt.gz"
    file.write_bytes(gzip.compress("\n".join(rows).encode()))
    options = ScreeningDataOptions(name="e", target_similarity_file=file)
    data = with_similarities(load_interactions(options), options)
    assert data.target_similarity is not None
    assert np.array_equal(data.target_similarity, 0.5 + 0.5 * np.eye(664))
