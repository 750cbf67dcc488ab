"""Fingerprints and the Tanimoto kernel."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from stillroom.errors import InputError, MissingExtraError
from stillroom.screening.kernels import chemical
from stillroom.screening.kernels.algebra import smallest_eigenvalue
from stillroom.screening.kernels.chemical import (
    canonical_smiles,
    fingerprints,
    invalid_smiles,
    tanimoto,
    tanimoto_kernel,
)

DRUGS = (
    "CC(=O)Oc1ccccc1C(=O)O",
    "CN1CCN(CC1)Cc2ccc(cc2)C(=O)Nc3ccc(C)c(c3)Nc4nccc(n4)c5cccnc5",
    "CN1C=NC2=C1C(=O)N(C(=O)N2C)C",
    "CC(C)Cc1ccc(cc1)C(C)C(=O)O",
    "CNCCC(Oc1ccc(cc1)C(F)(F)F)c1ccccc1",
    "[Na+].[Cl-]",
    "C",
)


@pytest.mark.parametrize(("fingerprint", "width"), [("morgan", 2048), ("maccs", 167)])
def test_fingerprints_are_bits_of_the_promised_length(fingerprint: Any, width: int) -> None:
    bits = fingerprints(DRUGS, fingerprint=fingerprint)
    assert bits.shape == (len(DRUGS), width)
    assert bits.dtype == np.uint8
    assert set(np.unique(bits)) == {0, 1}


def test_radius_and_bits_change_the_morgan_fingerprint() -> None:
    assert fingerprints(DRUGS, bits=512).shape == (len(DRUGS), 512)
    assert (fingerprints(DRUGS, radius=0).sum(axis=1) <= fingerprints(DRUGS, radius=2).sum(axis=1)).all()
    assert fingerprints(DRUGS, radius=0).sum() < fingerprints(DRUGS, radius=2).sum()


@pytest.mark.parametrize("fingerprint", ["morgan", "maccs"])
def test_the_kernel_agrees_with_rdkit(fingerprint: Any) -> None:
    from rdkit import Chem, DataStructs
    from rdkit.Chem import MACCSkeys, rdFingerprintGenerator

    generator = rdFingerprintGenerator.GetMorganGenerator(radius=2, fpSize=2048)
    make = generator.GetFingerprint if fingerprint == "morgan" else MACCSkeys.GenMACCSKeys
    drugs = DRUGS[:5]  # the last two have no MACCS key, where RDKit's convention is another
    prints = [make(Chem.MolFromSmiles(text)) for text in drugs]
    expected = [DataStructs.BulkTanimotoSimilarity(one, prints) for one in prints]
    np.testing.assert_allclose(tanimoto_kernel(drugs, fingerprint=fingerprint), expected, rtol=1e-15)


def test_the_kernel_has_ones_on_the_diagonal_and_no_negative_eigenvalue() -> None:
    for fingerprint in ("morgan", "maccs"):
        kernel = tanimoto_kernel(DRUGS, fingerprint=fingerprint)  # type: ignore[arg-type]
        assert (np.diagonal(kernel) == 1).all()
        assert (kernel == kernel.T).all()
        assert smallest_eigenvalue(kernel) > -1e-10


def test_the_spelling_of_a_structure_does_not_matter() -> None:
    from rdkit import Chem

    molecule = Chem.MolFromSmiles(DRUGS[1])
    other = Chem.MolToRandomSmilesVect(molecule, 5, randomSeed=1)
    assert len(set(other)) > 1
    assert len(set(canonical_smiles([DRUGS[1], *other]))) == 1
    assert (tanimoto_kernel([DRUGS[1], *other]) == 1).all()


def test_canonical_smiles_tell_enantiomers_apart() -> None:
    left, right = canonical_smiles(["C[C@H](N)C(=O)O", "C[C@@H](N)C(=O)O"])
    assert left != right


def bit_matrices(columns: int = 6) -> st.SearchStrategy[np.ndarray]:
    return st.integers(1, 7).flatmap(lambda rows: arrays(np.uint8, (rows, columns), elements=st.integers(0, 1)))


@settings(deadline=None)
@given(bit_matrices(), bit_matrices(), st.integers(1, 4))
def test_tanimoto_is_the_share_of_common_bits_whatever_the_block(a: np.ndarray, b: np.ndarray, block: int) -> None:
    def share(x: np.ndarray, y: np.ndarray) -> float:
        mine, yours = set(np.flatnonzero(x)), set(np.flatnonzero(y))
        return len(mine & yours) / len(mine | yours) if mine | yours else 1.0

    whole, one_block = [[share(x, y) for y in b] for x in a], tanimoto(a, b)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chemical, "BLOCK", block)
        assert (tanimoto(a, b) == whole).all()
        assert (tanimoto(a) == tanimoto(a, a)).all()
    assert (one_block == whole).all()
    assert (tanimoto(a.astype(bool), b.astype(float)) == whole).all()


def test_two_fingerprints_without_bits_are_the_same_and_one_of_them_is_unlike_others() -> None:
    bits = np.array([[0, 0], [0, 0], [1, 0]])
    assert tanimoto(bits).tolist() == [[1, 1, 0], [1, 1, 0], [0, 0, 1]]


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (np.ones(3), None, "a has shape [3]; fingerprints are [N, bits]"),
        (np.ones((1, 3)), np.ones((1, 4)), "3 and 4 bits"),
        (np.array([[0, 1], [2, 0]]), None, "row 1 of a"),
        (np.ones((1, 2)), np.array([[np.nan, 1]]), "row 0 of b"),
    ],
)
def test_tanimoto_refuses_what_is_no_matrix_of_bits(a: np.ndarray, b: np.ndarray | None, message: str) -> None:
    with pytest.raises(InputError) as told:
        tanimoto(a, b)
    assert message in str(told.value)


@pytest.mark.parametrize(
    "text",
    ["", " ", ".", "C1CC", "c1cccc1", "CC(C)(C)(C)C", "CCO ethanol", "C\nC", "hello", "C\0C", None, float("nan")],
)
def test_what_is_no_smiles_is_found_with_its_position(text: Any) -> None:
    assert invalid_smiles(["CCO", text, "C"]) == [(1, str(text))]


def test_valid_smiles_are_not_called_invalid() -> None:
    assert invalid_smiles(DRUGS) == []


@pytest.mark.parametrize("function", [canonical_smiles, fingerprints, tanimoto_kernel])
def test_the_error_names_the_first_bad_smiles_and_how_many_more(function: Any) -> None:
    with pytest.raises(
        InputError, match=r"^the SMILES at position 1 \(counted from 0\), 'C1CC', cannot be read, nor"
    ) as t:
        function(["CCO", "C1CC", "", "x"])
    assert "2 more" in str(t.value)
    with pytest.raises(InputError, match=r"'C1CC', cannot be read; mend"):
        function(["CCO", "C1CC"])
    with pytest.raises(InputError, match="there are no SMILES"):
        function([])


@pytest.mark.parametrize("function", [canonical_smiles, fingerprints, invalid_smiles])
def test_a_string_is_not_taken_for_a_list_of_structures(function: Any) -> None:
    with pytest.raises(InputError, match="give a list"):
        function("CCO")


@pytest.mark.parametrize(
    ("options", "name"),
    [({"fingerprint": "morgn"}, "did you mean 'morgan'"), ({"radius": -1}, "radius"), ({"bits": 0}, "bits")],
)
def test_impossible_options_are_refused(options: dict[str, Any], name: str) -> None:
    with pytest.raises(InputError, match=name):
        fingerprints(["CCO"], **options)


def test_rdkit_is_silent_about_bad_smiles_and_speaks_again_afterwards() -> None:
    script = """
from rdkit import Chem, rdBase
from stillroom.screening.kernels.chemical import invalid_smiles
before = rdBase.LogStatus()
invalid_smiles(["C1CC", "c1cccc1", "hello"])
assert rdBase.LogStatus() == before
print("now", flush=True)
Chem.MolFromSmiles("C1C")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "now\n"
    assert "C1C" in done.stderr
    assert "C1CC" not in done.stderr
    assert "hello" not in done.stderr


def test_without_rdkit_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rdkit", None)
    with pytest.raises(MissingExtraError, match=r"rdkit is not installed.*stillroom\[screening\]"):
        fingerprints(["CCO"])


def test_a_column_of_a_table_is_taken_by_position() -> None:
    import pandas

    column = pandas.Series(["CCO", "C1CC", "C"], index=[7, 5, 3])
    assert invalid_smiles(column) == [(1, "C1CC")]
    with pytest.raises(InputError, match="position 1 "):
        fingerprints(column)
    assert canonical_smiles(column[[7, 3]]) == ["CCO", "C"]
