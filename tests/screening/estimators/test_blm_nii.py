"""BLM-NII: inferred profiles against a slow formulation, its two sides, and what it is when nothing is new."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from screening.estimators.problems import kernel, problems
from stillroom.errors import InputError
from stillroom.screening._checks import Array
from stillroom.screening.estimators._rls import rls_side
from stillroom.screening.estimators.blm_nii import BLMNII, blm_nii_side, combined, inferred_profiles
from stillroom.screening.estimators.rls_avg import RLSAvg
from stillroom.screening.kernels.gip import gip_kernel


@settings(max_examples=40, deadline=None)
@given(problems())
def test_a_new_drug_gets_the_weighted_profiles_of_the_others_scaled_to_0_and_1(
    problem: tuple[Array, Array, Array],
) -> None:
    labels, drugs, _ = problem
    before = labels.copy()
    completed = inferred_profiles(labels, drugs)
    for d, row in enumerate(completed):
        if labels[d].any():
            assert np.array_equal(row, labels[d])
            continue
        profile = sum(drugs[d, j] * labels[j] for j in range(len(labels)))
        assert isinstance(profile, np.ndarray)
        spread = profile.max() - profile.min()
        expected = (profile - profile.min()) / spread if spread > 0 else np.zeros_like(profile)
        np.testing.assert_allclose(row, expected, atol=1e-9)
    assert np.array_equal(labels, before)


def test_a_profile_that_is_the_same_for_all_targets_says_nothing() -> None:
    labels = np.array([[1.0, 1.0], [0.0, 0.0]])
    assert inferred_profiles(labels, np.array([[1.0, 0.5], [0.5, 1.0]]))[1].tolist() == [0, 0]
    assert inferred_profiles(np.eye(3)[:2], np.eye(2)).tolist() == np.eye(3)[:2].tolist()


@settings(max_examples=30, deadline=None)
@given(problems())
def test_one_side_is_least_squares_on_the_inferred_profiles(problem: tuple[Array, Array, Array]) -> None:
    labels, drugs, _ = problem
    new = ~labels.any(axis=1)
    mixed = 0.3 * drugs + 0.7 * gip_kernel(labels, gamma=2.0)
    mixed[new], mixed[:, new] = drugs[new], drugs[:, new]
    expected = rls_side(mixed, inferred_profiles(labels, drugs), sigma=0.5)
    found = blm_nii_side(labels, drugs, alpha=0.3, gamma=2.0, sigma=0.5, psd="none")
    np.testing.assert_allclose(found, expected, atol=1e-9)


@settings(max_examples=30, deadline=None)
@given(problems(), st.sampled_from(["max", "mean"]))
def test_on_the_transpose_the_scores_are_transposed(problem: tuple[Array, Array, Array], how: Any) -> None:
    labels, drugs, targets = problem
    straight = BLMNII(drugs, targets, combine=how).fit_matrix(labels)
    turned = BLMNII(targets, drugs, combine=how).fit_matrix(labels.T)
    np.testing.assert_allclose(turned.scores_, straight.scores_.T, atol=1e-9)


@settings(max_examples=30, deadline=None)
@given(problems(new=False), st.sampled_from([0.0, 0.5, 1.0]))
def test_the_mean_is_rls_avg_where_nothing_is_new(problem: tuple[Array, Array, Array], alpha: float) -> None:
    labels, drugs, targets = problem
    model = BLMNII(drugs, targets, alpha=alpha, sigma=0.5, combine="mean").fit_matrix(labels)
    np.testing.assert_allclose(
        model.scores_, RLSAvg(drugs, targets, alpha=alpha, sigma=0.5).fit_matrix(labels).scores_, atol=1e-9
    )


def test_with_a_new_drug_it_is_not_rls_avg() -> None:
    generator = np.random.default_rng(0)
    labels = np.array([[1.0, 0, 1], [0, 1, 0], [0, 0, 0]])
    drugs, targets = kernel(3, generator), kernel(3, generator)
    model = BLMNII(drugs, targets, combine="mean").fit_matrix(labels)
    assert np.abs(model.scores_[2] - RLSAvg(drugs, targets).fit_matrix(labels).scores_[2]).max() > 0.01


@settings(max_examples=30, deadline=None)
@given(problems(), st.sampled_from(["max", "mean"]))
def test_the_score_is_the_larger_of_both_sides_or_their_mean(problem: tuple[Array, Array, Array], how: Any) -> None:
    labels, drugs, targets = problem
    by_drug = blm_nii_side(labels, drugs, alpha=0.3, gamma=2.0, sigma=0.5)
    by_target = blm_nii_side(labels.T, targets, alpha=0.3, gamma=2.0, sigma=0.5).T
    both = np.stack([by_drug, by_target])
    expected = both.max(0) if how == "max" else both.mean(0)
    model = BLMNII(drugs, targets, alpha=0.3, gamma=2.0, sigma=0.5, combine=how).fit_matrix(labels)
    np.testing.assert_allclose(model.scores_, expected, atol=1e-12)
    np.testing.assert_allclose(combined(by_drug, by_target, how), expected, atol=1e-12)


@settings(max_examples=30, deadline=None)
@given(problems(new=False))
def test_the_repair_changes_nothing_on_kernels_where_nothing_is_new(problem: tuple[Array, Array, Array]) -> None:
    labels, drugs, targets = problem
    clipped, bare = (BLMNII(drugs, targets, psd=psd).fit_matrix(labels) for psd in ("clip", "none"))
    np.testing.assert_allclose(clipped.scores_, bare.scores_, atol=1e-9)


def test_the_repair_matters_where_replaced_rows_make_the_kernel_indefinite() -> None:
    generator = np.random.default_rng(1)
    labels = (generator.random((8, 6)) < 0.3).astype(float)
    labels[[2, 5]] = 0
    drugs = np.clip(kernel(8, generator) + 0.3, 0, 1)
    clipped, bare = (blm_nii_side(labels, drugs, alpha=0.1, psd=psd) for psd in ("clip", "none"))
    assert np.abs(clipped - bare).max() > 1e-3


def test_a_new_drug_is_like_the_known_one_it_is_most_similar_to() -> None:
    labels = np.array([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 0]])
    drugs = np.full((4, 4), 0.1) + 0.9 * np.eye(4)
    drugs[3, 1] = drugs[1, 3] = 0.8
    model = BLMNII(drugs, np.eye(3)).fit_matrix(labels)
    assert model.scores_[3].argmax() == 1


def test_an_unknown_combination_is_one_line() -> None:
    with pytest.raises(InputError, match=r"^unknown combine 'min'"):
        BLMNII(np.eye(2), np.eye(2), combine="min").fit_matrix(np.eye(2))  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"^sigma is -1"):
        BLMNII(np.eye(2), np.eye(2), sigma=-1).fit_matrix(np.eye(2))
