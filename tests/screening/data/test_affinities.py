"""Davis and KIBA, in both layouts they are found in."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stillroom.errors import InputError
from stillroom.screening.data.affinities import read_davis, read_kiba
from stillroom.screening.data.sources import load_interactions
from stillroom.screening.options import ScreeningDataOptions

KD = np.array([[30.0, 10000.0], [31.0, 0.5], [10000.0, 10000.0]])
LIGANDS = {"11": "CCO", "7": "CCN", "5": "CCC"}
PROTEINS = {"ABL1": "MKV", "AAK1": "MKI"}
DAVIS = {
    "drug-target_interaction_affinities_Kd__Davis_et_al.2011v1.txt": "30 10000\n31 0.5\n10000 10000\n",
    "drug-drug_similarities_2D.txt": "1 .5 .5\n.5 1 .5\n.5 .5 1\n",
    "target-target_similarities_WS_normalized.txt": "100 40\n40 100\n",
    "drug_PubChem_CIDs.txt": "11\n7\n5\n",
    "target_gene_names.txt": "ABL1\nABL1\n",
}


def davis(path: Path, **changed: str) -> Path:
    for name, text in DAVIS.items():
        (path / name).write_text(changed.get(name.split("_")[0], text))
    return path


def deep(path: Path, affinities: Any, protocol: int = 2, **changed: Any) -> Path:
    for name, texts in (("ligands_can", LIGANDS), ("proteins", PROTEINS)):
        (path / f"{name}.txt").write_text(changed.get(name, json.dumps(texts)))
    (path / "Y").write_bytes(pickle.dumps(affinities, protocol))
    return path


def test_davis_is_read_from_text_matrices(tmp_path: Path) -> None:
    data = read_davis(davis(tmp_path))
    assert data.labels.tolist() == [[1, 0], [0, 1], [0, 0]]  # at most 30 nM
    assert data.measured is not None
    assert data.measured.all()
    assert (data.drugs, data.targets) == (("11", "7", "5"), ("ABL1 #1", "ABL1 #2"))
    assert data.target_similarity is not None
    assert data.target_similarity[0].tolist() == [1, 0.4]
    assert any("holds percentages" in note for note in data.notes)
    assert read_davis(tmp_path, threshold=31).labels.sum() == 3


def test_raw_scores_are_normalised(tmp_path: Path) -> None:
    davis(tmp_path)
    (tmp_path / "target-target_similarities_WS_normalized.txt").unlink()
    (tmp_path / "target-target_similarities_WS.txt").write_text("400 100\n100 100\n")
    data = read_davis(tmp_path)
    assert data.target_similarity is not None
    assert data.target_similarity.tolist() == [[1, 0.5], [0.5, 1]]


def test_kiba_is_read_from_text_matrices_and_unknown_values_are_not_measured(tmp_path: Path) -> None:
    (tmp_path / "kiba_binding_affinity_v2.txt").write_text("12.1\tnan\t\n12.09\t13\t\n")
    (tmp_path / "kiba_drug_sim.txt").write_text("1\t0.5\n0.5\t1\n")
    (tmp_path / "kiba_target_sim.txt").write_text("1\t0.25\n0.25\t1\n")
    data = read_kiba(tmp_path)
    assert data.labels.tolist() == [[1, 0], [0, 1]]  # at least 12.1
    assert data.measured is not None
    assert data.measured.tolist() == [[True, False], [True, True]]
    assert data.drugs == ("D1", "D2")
    assert data.target_similarity is not None
    assert data.target_similarity[0, 1] == 0.25


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_deepdta_is_read_from_its_pickle_where_that_is_allowed(tmp_path: Path, protocol: int) -> None:
    data = read_davis(deep(tmp_path, KD, protocol), allow_pickle=True)
    assert data.labels.tolist() == [[1, 0], [0, 1], [0, 0]]
    assert (data.drugs, data.smiles) == (tuple(LIGANDS), tuple(LIGANDS.values()))
    assert (data.targets, data.sequences) == (tuple(PROTEINS), tuple(PROTEINS.values()))
    with pytest.raises(InputError, match=r"data\.allow_pickle"):
        load_interactions(ScreeningDataOptions(name=f"davis:{tmp_path}"))


def test_a_pickle_as_python_2_wrote_it_is_read(tmp_path: Path) -> None:
    deep(tmp_path, KD)
    # Bytes as a string of the old kind, which older pickles hold in place of _codecs.encode(text, "latin1").
    raw = KD.tobytes()
    state = b"(I1\n(I3\nI2\ntcnumpy\ndtype\n(S'f8'\nI0\nI1\ntR(I3\nS'<'\nNNNI-1\nI-1\nI0\ntbI00\nT"
    (tmp_path / "Y").write_bytes(
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR"
        + state
        + len(raw).to_bytes(4, "little")
        + raw
        + b"tb."
    )
    assert read_davis(tmp_path, allow_pickle=True).labels.tolist() == [[1, 0], [0, 1], [0, 0]]


class Harm:
    """A pickle that would make a folder when opened."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def test_a_pickle_that_would_run_something_runs_nothing(tmp_path: Path) -> None:
    deep(tmp_path, Harm(tmp_path / "made"))
    with pytest.raises(InputError, match=r"is refused: it names (posix|nt)\.mkdir"):
        read_davis(tmp_path, allow_pickle=True)
    deep(tmp_path, np.array([[Harm(tmp_path / "made")]], dtype=object))
    with pytest.raises(InputError, match="is refused"):
        read_davis(tmp_path, allow_pickle=True)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("content", [KD.tolist(), np.array([["1"]]), KD[0], np.array([[1, None]], dtype=object)])
def test_a_pickle_of_something_else_is_refused(tmp_path: Path, content: Any) -> None:
    with pytest.raises(InputError, match="is no matrix of numbers"):
        read_davis(deep(tmp_path, content), allow_pickle=True)


@pytest.mark.parametrize("content", [b"", b"\x80\x02", b"text", pickle.dumps(KD)[:-9]])
def test_a_damaged_pickle_is_refused(tmp_path: Path, content: bytes) -> None:
    deep(tmp_path, KD)
    (tmp_path / "Y").write_bytes(content)
    with pytest.raises(InputError, match="is damaged or no pickle"):
        read_davis(tmp_path, allow_pickle=True)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"ligands_can": '{"a": "CCO", "a": "CCN", "b": "CCC"}'}, "'a' stands twice"),
        ({"ligands_can": '{"a": "CCO"}'}, "has 1 drugs, but Y has 3"),
        ({"proteins": '{"a": 1, "b": "MKV"}'}, "must be one JSON object"),
        ({"proteins": '["MKV", "MKI"]'}, "must be one JSON object"),
        ({"proteins": "7"}, "must be one JSON object"),
        ({"proteins": "[" * 100_000}, "must be one JSON object"),
        ({"proteins": '{"a": \n'}, "row 2 is no JSON"),
    ],
)
def test_damaged_names_are_refused(tmp_path: Path, changed: dict[str, str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_davis(deep(tmp_path, KD, **changed), allow_pickle=True)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"drug-drug": "1 0\n0 1\n"}, "is 2 x 2, but there are 3 drugs"),
        ({"drug": "1\n2\n"}, "has 2 names, but .* has 3"),
        ({"drug-target": "1 2\n3\n"}, "row 2 has 1 numbers"),
        ({"drug-target": "nan 500\n500 500\n500 500\n"}, "no pair interacts at 30; change data.threshold"),
    ],
)
def test_matrices_that_do_not_fit_are_refused(tmp_path: Path, changed: dict[str, str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_davis(davis(tmp_path, **changed))


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds neither kiba_binding_affinity_v2\.txt nor Y"):
        read_kiba(tmp_path)
