"""Names, options, and the similarities that are filled in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stillroom.errors import InputError
from stillroom.screening.data.sources import load_interactions
from stillroom.screening.interactions import Interactions
from stillroom.screening.options import ScreeningDataOptions
from stillroom.screening.similarities import similarity_notes, with_similarities

PLAIN = Interactions(name="plain", labels=np.eye(2), drugs=("a", "b"), targets=("x", "y"))
ALIKE = np.array([[1.0, 0.5], [0.5, 1.0]])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "gpcrs"}, "unknown screening data set 'gpcrs'; did you mean 'gpcr'"),
        ({"name": "absent.csv"}, "there is no file absent.csv"),
        ({"name": "generated:x"}, "takes no path"),
        ({"name": "nr:folder"}, "give gold:FOLDER/PREFIX"),
        ({"name": "gold:"}, "gold needs a folder and the prefix"),
        ({"name": "gold:absent/nr"}, "gold needs a folder and the prefix"),
        ({"name": "davis"}, "davis needs a folder: davis:FOLDER"),
        ({"name": "kiba:absent"}, "there is no folder absent"),
        ({"name": "chembl"}, "chembl needs a file: chembl:FILE"),
        ({"name": "bindingdb:absent.tsv"}, "there is no file absent.tsv"),
        ({"threshold": 5.0}, "generated brings labels and no affinities"),
        ({"columns": ("label=Y",)}, "data.columns is for tables of your own"),
        ({"name": "chembl:x", "threshold": 0.0}, "no file x|a concentration is above 0"),
    ],
)
def test_what_cannot_be_loaded_is_refused_in_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        load_interactions(ScreeningDataOptions(**options))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"drug_kernel": "morgen"}, "did you mean 'morgan'"),
        ({"target_kernel": "smith"}, "unknown data.target_kernel"),
        ({"on_bad_rows": "drop"}, "unknown data.on_bad_rows"),
        ({"interacts": "least"}, "did you mean 'at-least'"),
        ({"threshold": float("nan")}, "data.threshold is nan"),
        ({"seed": -1}, "data.seed is -1"),
        ({"drugs": 3}, "data.drugs is 3; it must be a whole number at least 12"),
        ({"targets": 2.5}, "data.targets is 2.5"),
    ],
)
def test_impossible_options_are_refused_at_once(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ScreeningDataOptions(**options)


def test_without_a_folder_of_data_sets_the_line_says_how_to_name_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("STILLROOM_DATA", raising=False)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    with pytest.raises(InputError, match="set STILLROOM_DATA to the folder that holds dti-gold-standard/"):
        load_interactions(ScreeningDataOptions(name="nr"))
    monkeypatch.setenv("STILLROOM_DATA", str(tmp_path))
    with pytest.raises(InputError, match="put the file there, or name the place as gold:FOLDER/PREFIX"):
        load_interactions(ScreeningDataOptions(name="nr"))


def test_the_generated_set_has_both_similarities_in_the_end() -> None:
    options = ScreeningDataOptions(drugs=12, targets=6)
    data = with_similarities(load_interactions(options), options)
    for similarity in (data.drug_similarity, data.target_similarity):
        assert similarity is not None
        assert np.allclose(np.diagonal(similarity), 1)
        assert similarity.min() >= 0
    assert data.notes[-2:] == (
        "similarity of drugs: Tanimoto of morgan fingerprints",
        "similarity of targets: normalised Smith-Waterman scores",
    )


def test_the_kernels_asked_for_are_computed_though_others_are_given() -> None:
    data = PLAIN.replace(
        smiles=("CCO", "CCN"), sequences=("MKVLA", "MKVIA"), drug_similarity=ALIKE, target_similarity=ALIKE
    )
    kept = with_similarities(data, ScreeningDataOptions(drug_kernel="given"))
    assert np.array_equal(kept.drug_similarity, ALIKE)
    assert np.array_equal(kept.target_similarity, ALIKE)
    computed = with_similarities(data, ScreeningDataOptions(drug_kernel="maccs", target_kernel="mismatch"))
    assert not np.array_equal(computed.drug_similarity, ALIKE)
    assert not np.array_equal(computed.target_similarity, ALIKE)


@pytest.mark.parametrize(
    ("data", "options", "message"),
    [
        (PLAIN, {}, "neither similarities nor SMILES of the drugs"),
        (PLAIN.replace(drug_similarity=ALIKE), {}, "neither similarities nor sequences of the targets"),
        (PLAIN, {"drug_kernel": "given"}, "plain brings no similarity of drugs"),
        (PLAIN.replace(drug_similarity=ALIKE), {"drug_kernel": "morgan"}, "brings no SMILES for morgan"),
        (PLAIN.replace(drug_similarity=ALIKE), {"target_kernel": "given"}, "brings no similarity of targets"),
        (
            PLAIN.replace(drug_similarity=ALIKE, target_similarity=ALIKE),
            {"target_kernel": "spectrum"},
            "brings no sequences for spectrum",
        ),
    ],
)
def test_a_similarity_that_cannot_be_made_is_refused(data: Interactions, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        with_similarities(data, ScreeningDataOptions(**options))


@given(st.integers(1, 6), st.integers(0, 2**32))
@settings(max_examples=40, deadline=None)
def test_a_correlation_with_entries_in_0_to_1_needs_no_note(size: int, seed: int) -> None:
    features = np.random.default_rng(seed).random((size, 8))
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    assert similarity_notes(features @ features.T, "it") == ()


def test_every_oddity_of_a_similarity_is_noted() -> None:
    notes = similarity_notes(np.array([[1.0, -2.0], [3.0, 1.0]]), "it")
    assert notes == (
        "it: not symmetric, entries differ by up to 5; their mean is taken",
        "it: not within 0..1, from -2 to 3",
    )
    assert similarity_notes(np.array([[0.0, 1.0], [1.0, 0.0]]), "it") == (
        "it: not positive semi-definite, the smallest eigenvalue is -1",
    )
