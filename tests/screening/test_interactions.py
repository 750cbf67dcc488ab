"""The value every part passes on: what it accepts, what it refuses, what it counts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillroom.errors import InputError
from stillroom.screening._checks import checked_similarity, in_range, one_of
from stillroom.screening.interactions import Interactions

LABELS = np.array([[1, 0, 1], [0, 0, 0]])


def data(**changed: Any) -> Interactions:
    fields: dict[str, Any] = {"name": "toy", "labels": LABELS, "drugs": ["a", "b"], "targets": ["x", "y", "z"]}
    return Interactions(**{**fields, **changed})


def test_counts_are_plain_data() -> None:
    measured = np.array([[1, 1, 1], [0, 1, 0]])
    assert data(measured=measured, notes=["read"]).describe() == {
        "name": "toy",
        "drugs": 2,
        "targets": 3,
        "interactions": 2,
        "density": 2 / 6,
        "measured": 4,
        "new_drugs": 1,
        "new_targets": 1,
        "notes": ["read"],
    }
    assert data().describe()["measured"] is None


def test_new_ones_are_those_without_any_interaction() -> None:
    assert data().new_drugs.tolist() == [1]
    assert data().new_targets.tolist() == [1]
    assert data().shape == (2, 3)


def test_values_are_kept_in_one_type_whatever_came() -> None:
    found = data(
        labels=LABELS.astype(bool).tolist(),
        measured=np.ones((2, 3), dtype=int),
        smiles=["C", "CC"],
        sequences=["MK", "MV", "MA"],
        drug_similarity=[[1, 0.5], [0.25, 1]],
        notes=["one"],
    )
    assert (found.labels.dtype.name, found.labels.tolist()) == ("float64", LABELS.tolist())
    assert found.measured is not None
    assert found.measured.dtype == bool
    assert (found.drugs, found.smiles, found.sequences, found.notes) == (
        ("a", "b"), ("C", "CC"), ("MK", "MV", "MA"), ("one",),
    )  # fmt: skip
    assert found.drug_similarity is not None
    assert found.drug_similarity.tolist() == [[1, 0.375], [0.375, 1]]


def test_replaced_fields_are_checked_again_and_the_others_kept() -> None:
    first = data(smiles=["C", "CC"])
    second = first.replace(name="other")
    assert (second.name, second.smiles, first.name) == ("other", first.smiles, "toy")
    with pytest.raises(InputError, match="3 names of drugs for labels of 2"):
        first.replace(drugs=("a", "b", "c"))


def test_values_are_the_same_only_if_they_are_one() -> None:
    first = data()
    assert first == first
    assert first != data()


def test_fields_cannot_be_set() -> None:
    with pytest.raises(AttributeError):
        data().name = "other"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"labels": np.ones(3)}, "labels have shape [3]; they must be [drugs, targets]"),
        ({"labels": np.zeros((0, 3))}, "labels have shape [0, 3]"),
        ({"labels": np.zeros((2, 3))}, "no pair is labelled 1; at least one known interaction is needed"),
        ({"labels": [[1, 0, 7.5], [0, 0, 0]]}, "the label of drug 0 and target 2 (counted from 0) is 7.5"),
        ({"labels": [[1, 0, 1], [0, np.nan, 0]]}, "the label of drug 1 and target 1 (counted from 0) is nan"),
        ({"labels": [["1", "x", "1"], [0, 0, 0]]}, "labels holds something that is no number"),
        ({"drugs": ["a"]}, "toy: 1 names of drugs for labels of 2"),
        ({"targets": ["x", "y"]}, "toy: 2 names of targets for labels of 3"),
        ({"drugs": ["a", "a"]}, "toy: the drug 'a' stands 2 times; once each"),
        ({"targets": ["x", "z", "z"]}, "toy: the target 'z' stands 2 times; once each"),
        ({"smiles": ["C"]}, "toy: 1 structures or sequences for 2 drugs; one each"),
        ({"sequences": ["M"]}, "toy: 1 structures or sequences for 3 targets; one each"),
        ({"measured": np.ones((3, 2))}, "measured has shape [3, 2]; it must be [2, 3]"),
        ({"measured": [[1, 0, 0], [0, 0, 0]]}, "toy: a pair is labelled 1 and not among the measured ones"),
        ({"drug_similarity": np.eye(3)}, "drug_similarity has 3 rows, but the labels have 2 drugs"),
        ({"target_similarity": np.eye(2)}, "target_similarity has 2 rows, but the labels have 3 targets"),
        ({"target_similarity": np.ones((3, 2))}, "target_similarity has shape [3, 2]; it must be square"),
        ({"drug_similarity": [[1, np.inf], [0, 1]]}, "drug_similarity is inf in row 0, column 1 (counted from 0)"),
    ],
)
def test_what_does_not_fit_together_is_one_line(changed: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError) as caught:
        data(**changed)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@given(st.integers(1, 6), st.integers(0, 2**32 - 1))
def test_a_similarity_is_the_mean_of_itself_and_its_transpose(size: int, seed: int) -> None:
    matrix = np.random.default_rng(seed).normal(size=(size, size))
    before = matrix.copy()
    found = checked_similarity(matrix, size, "drug_similarity")
    np.testing.assert_array_equal(found, found.T)
    np.testing.assert_allclose(found, (before + before.T) / 2)
    np.testing.assert_array_equal(matrix, before)


@pytest.mark.parametrize(
    ("arguments", "options", "said"),
    [
        (("alpha", 2, 0, 1), {}, "alpha is 2; it must be a number at least 0 and at most 1"),
        (("sigma", 0, 0), {"above": True}, "sigma is 0; it must be a number above 0"),
        (("top", 2.0, 1), {"whole": True}, "top is 2.0; it must be a whole number at least 1"),
        (("top", True, 0), {"whole": True}, "top is True; it must be a whole number at least 0"),
        (("x", True), {}, "x is True; it must be a number"),
        (("x", "1"), {}, "x is '1'; it must be a number"),
        (("x", float("nan")), {}, "x is nan; it must be a number"),
        (("x", float("inf")), {}, "x is inf; it must be a number"),
    ],
)
def test_an_option_outside_its_range_is_one_line(arguments: Any, options: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError) as caught:
        in_range(*arguments, **options)
    assert str(caught.value) == said


@given(st.integers(-5, 5))
def test_the_ends_of_a_range_belong_to_it_unless_it_is_above(value: int) -> None:
    in_range("x", value, value, value, whole=True)
    in_range("x", np.float64(value), value, value)
    in_range("x", np.int32(value), value, value, whole=True)
    with pytest.raises(InputError):
        in_range("x", value, value, above=True)


def test_a_choice_that_does_not_exist_is_one_line_with_the_nearest() -> None:
    one_of("psd", "clip", ("clip", "none"))
    with pytest.raises(InputError, match=r"^unknown psd 'clop'; did you mean 'clip'\?$"):
        one_of("psd", "clop", ("clip", "none"))
