"""Identical drugs and targets are found, and what they give away across a split is counted."""

from __future__ import annotations

import gzip
import itertools
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from stillroom.errors import InputError
from stillroom.screening.interactions import Interactions
from stillroom.screening.leaks import Twins, identical, leak_counts, leak_notes
from stillroom.screening.protocols import Fold, Setting, make_folds

SETTINGS = get_args(Setting)


def data_of(labels: NDArray[Any], **values: Any) -> Interactions:
    m, n = labels.shape
    names = {"drugs": [f"d{i}" for i in range(m)], "targets": [f"t{j}" for j in range(n)]}
    return Interactions(**{"name": "some", "labels": labels, **names, **values})


def test_structures_are_compared_whatever_their_spelling_and_sequences_whatever_their_case() -> None:
    data = data_of(
        np.ones((4, 4)),
        smiles=["CCO", "c1ccccc1", "OCC", "C1=CC=CC=C1"],
        sequences=["MKV", "MKL", "mkv\n", "MKVV"],
        drug_similarity=np.eye(4),
        target_similarity=np.eye(4),
    )
    twins = identical(data)
    assert twins.drug_groups.tolist() == [0, 1, 0, 1]
    assert twins.target_groups.tolist() == [0, 1, 0, 2]


def test_mirror_images_are_not_identical() -> None:
    data = data_of(np.ones((2, 1)), smiles=["C[C@H](N)C(=O)O", "C[C@@H](N)C(=O)O"])
    assert identical(data).drug_groups.tolist() == [0, 1]


def test_without_structures_equal_rows_of_the_similarity_are_identical() -> None:
    similarity = np.array(
        [
            [1.0, 0.3, 1.0, 1.0],
            [0.3, 1.0, 0.3, 0.4],
            [1.0, 0.3, 1.0, 1.0],
            [1.0, 0.4, 1.0, 1.0],  # 1 to the first, and another row
        ]
    )
    data = data_of(np.ones((4, 4)), drug_similarity=similarity, target_similarity=similarity + 1e-12 * np.eye(4))
    twins = identical(data)
    assert twins.drug_groups.tolist() == twins.target_groups.tolist() == [0, 1, 0, 2]


def test_where_nothing_is_known_all_differ() -> None:
    twins = identical(data_of(np.ones((3, 2)), drug_similarity=np.diag([1.0, 0.0, 0.0]), sequences=["", ""]))
    assert twins.drug_groups.tolist() == [0, 1, 2]
    assert twins.target_groups.tolist() == [0, 1]


groups = st.lists(st.integers(0, 4), min_size=6, max_size=6).filter(lambda numbers: len(set(numbers)) >= 2)


@given(drugs=groups, targets=groups, setting=st.sampled_from(SETTINGS), seed=st.integers(0, 99))
def test_counts_are_those_of_looking_at_every_pair(
    drugs: list[int], targets: list[int], setting: Setting, seed: int
) -> None:
    labels = (np.random.default_rng(seed).random((6, 6)) < 0.4).astype(float)
    labels[0, 0] = 1
    folds = make_folds((6, 6), setting, seed=seed, num_folds=3)
    expected = dict.fromkeys(
        ("new_drugs", "new_drugs_with_twin", "new_targets", "new_targets_with_twin", "test_pairs", "pairs_with_twin"), 0
    )
    expected.update(positives_with_twin=0, pairs_in_train=0)
    for fold in folds:
        for kind, train, test, group in (
            ("drugs", fold.train, fold.test, drugs),
            ("targets", fold.train.T, fold.test.T, targets),
        ):
            for one in range(6):
                if test[one].any() and not train[one].any():
                    expected[f"new_{kind}"] += 1
                    expected[f"new_{kind}_with_twin"] += any(
                        group[one] == group[other] and train[other].any() for other in range(6)
                    )
        for drug, target in np.argwhere(fold.test):
            twins = [
                (d, t)
                for d, t in itertools.product(range(6), range(6))
                if fold.train[d, t] and drugs[d] == drugs[drug] and targets[t] == targets[target]
            ]
            expected["test_pairs"] += 1
            expected["pairs_with_twin"] += bool(twins)
            expected["positives_with_twin"] += bool(labels[drug, target] and any(labels[pair] for pair in twins))
    assert leak_counts(data_of(labels), folds, Twins(np.array(drugs), np.array(targets))) == expected


@given(drugs=groups, targets=groups, setting=st.sampled_from(SETTINGS), seed=st.integers(0, 99))
def test_folds_that_keep_twins_together_let_nothing_through(
    drugs: list[int], targets: list[int], setting: Setting, seed: int
) -> None:
    twins = Twins(np.array(drugs), np.array(targets))
    folds = make_folds(
        (6, 6), setting, seed=seed, num_folds=2, drug_groups=twins.drug_groups, target_groups=twins.target_groups
    )
    counts = leak_counts(data_of(np.ones((6, 6))), folds, twins)
    assert counts["test_pairs"] == 36
    assert leak_notes(counts, setting) == []


def test_notes_say_what_leaks_and_how_to_mend_it() -> None:
    labels = np.array([[1, 0], [1, 0], [0, 1]])
    test = np.array([[True, True], [False, False], [False, False]])
    counts = leak_counts(data_of(labels), [Fold(train=~test, test=test)], Twins(np.array([0, 0, 1]), np.array([0, 1])))
    assert leak_notes(counts, "S2") == [
        "S2: 1 of 1 new drugs (all folds) have an identical drug in training; --group_twins keeps them in one fold.",
        "S2: 2 of 2 test pairs repeat one of training, 1 of them an interaction; --group_twins keeps them in one fold.",
    ]


def test_a_broken_split_is_noted() -> None:
    fold = make_folds((4, 3), "S1", seed=22, num_folds=2)[0]
    fold.train[:] = True
    counts = leak_counts(data_of(np.ones((4, 3))), [fold], Twins(np.arange(4), np.arange(3)))
    assert counts["pairs_in_train"] == 6
    assert "S1: 6 test pairs are trained on; the split is broken." in leak_notes(counts, "S1")


def test_folds_and_twins_of_other_data_are_refused() -> None:
    data, folds = data_of(np.ones((4, 3))), make_folds((4, 3), "S1", seed=22, num_folds=2)
    with pytest.raises(InputError, match="3 groups of identical drugs for 4 drugs"):
        leak_counts(data, folds, Twins(np.arange(3), np.arange(3)))
    with pytest.raises(InputError, match="5 groups of identical targets for 3 targets"):
        leak_counts(data, folds, Twins(np.arange(4), np.arange(5)))
    with pytest.raises(InputError, match=r"fold 0 is of \[3, 4\] pairs, some of \[4, 3\]"):
        leak_counts(data, make_folds((3, 4), "S1", seed=22, num_folds=2), Twins(np.arange(4), np.arange(3)))


def table(file: Path) -> tuple[list[str], NDArray[Any]]:
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        columns = next(lines).rstrip("\n").split("\t")[1:]
        return columns, np.array([[float(cell) for cell in line.split("\t")[1:]] for line in lines])


@pytest.mark.shared_data
@pytest.mark.parametrize("name", ["nr", "gpcr", "ic"])
def test_identical_drugs_of_real_sets_are_those_with_equal_similarities_in_whole_millionths(
    name: str, shared_data: Path
) -> None:
    folder = shared_data / "dti-gold-standard"
    drugs, drug_similarity = table(folder / f"{name}_simmat_dc.txt.gz")
    _, target_similarity = table(folder / f"{name}_simmat_dg.txt.gz")
    _, labels = table(folder / f"{name}_admat_dgc.txt.gz")
    similarities = {"drug_similarity": drug_similarity, "target_similarity": target_similarity}
    data = data_of(labels.T, drugs=drugs, **similarities)
    twins = identical(data)
    for found, similarity in ((twins.drug_groups, drug_similarity), (twins.target_groups, target_similarity)):
        whole = np.rint((similarity + similarity.T) * 1e6).astype(int)
        expected = np.unique(whole, axis=0, return_inverse=True)[1]
        np.testing.assert_array_equal(found[:, None] == found, expected[:, None] == expected)
    if name == "nr":  # tretinoin and isotretinoin, which differ in the geometry of a double bond alone
        assert twins.drug_groups[drugs.index("D00094")] == twins.drug_groups[drugs.index("D00348")]
    plain = leak_counts(data, make_folds(data.shape, "S2", seed=7771), twins)
    kept = make_folds(data.shape, "S2", seed=7771, drug_groups=twins.drug_groups)
    assert plain["new_drugs"] == data.shape[0]
    assert leak_counts(data, kept, twins)["new_drugs_with_twin"] == 0
