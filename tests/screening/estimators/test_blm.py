"""Bipartite local models against one model written out for each column."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sklearn.svm import SVC

from stillroom.errors import InputError
from stillroom.screening._checks import Array, Mask
from stillroom.screening.estimators._rls import profile_and_similarity, rls_side
from stillroom.screening.estimators.blm import BLM, local_rls, local_svm

SHAPE = (11, 7)


@pytest.fixture
def kernel() -> Array:
    features = np.random.default_rng(0).normal(size=(SHAPE[0], 4))
    squares = ((features[:, None] - features) ** 2).sum(-1)
    return np.exp(-squares / 8)


@pytest.fixture
def seen() -> tuple[Array, Mask]:
    """Labels, hidden ones at 0, with a new row, an empty column and columns that share what is observed."""
    generator = np.random.default_rng(1)
    labels = (generator.random(SHAPE) < 0.4).astype(float)
    observed = generator.random(SHAPE) < 0.8
    observed[:, 1] = observed[:, 0]
    labels[3] = 0
    labels[:, 5] = 0
    return labels * observed, observed


def test_local_rls_is_kernel_ridge_regression_where_everything_is_observed(kernel: Array, seen: Any) -> None:
    labels, observed = seen
    scores = local_rls(labels, np.ones_like(observed), kernel, sigma=0.5)
    np.testing.assert_allclose(scores, rls_side(kernel, labels, sigma=0.5), atol=1e-12)


def test_local_rls_learns_each_column_from_the_rows_observed_in_it(kernel: Array, seen: Any) -> None:
    labels, observed = seen
    scores = local_rls(labels, observed, kernel, sigma=0.5)
    for column in range(SHAPE[1]):
        rows = np.flatnonzero(observed[:, column])
        within = rls_side(kernel[np.ix_(rows, rows)], labels[rows, column], sigma=0.5)
        np.testing.assert_allclose(scores[rows, column], within, atol=1e-12)


def test_local_svm_is_the_decision_of_a_machine_a_column_on_the_scale_of_the_labels(kernel: Array, seen: Any) -> None:
    labels, observed = seen
    scores = local_svm(labels, observed, kernel, C=2.0)
    fitted = 0
    for column in range(SHAPE[1]):
        rows = np.flatnonzero(observed[:, column])
        if len(set(labels[rows, column])) < 2:
            assert not scores[:, column].any()
            continue
        machine = SVC(kernel="precomputed", C=2.0).fit(kernel[np.ix_(rows, rows)], labels[rows, column])
        decision = machine.decision_function(kernel[:, rows])
        np.testing.assert_allclose(2 * scores[:, column] - 1, decision, atol=1e-9)
        fitted += 1
    assert fitted == SHAPE[1] - 1


@pytest.mark.parametrize("local", ["rls", "svm"])
def test_a_new_drug_is_scored_by_the_models_of_the_targets_alone(kernel: Array, seen: Any, local: Any) -> None:
    labels, observed = seen
    targets = np.eye(SHAPE[1]) * 0.5 + 0.5
    model = BLM(kernel, targets, local=local, combine="mean").fit_matrix(labels, observed)
    side = local_svm if local == "svm" else local_rls
    # The drug's own models have nothing to learn from, so they have no say: the mean is that of the others alone.
    np.testing.assert_allclose(model.scores_[3], side(labels, observed, kernel)[3], atol=1e-9)
    assert model.scores_[3].any()


def test_the_profile_kernel_joins_in_below_alpha_1(kernel: Array, seen: Any) -> None:
    labels, observed = seen
    model = BLM(kernel, np.eye(SHAPE[1]), alpha=0.3, gamma=2.0).fit_matrix(labels, observed)
    by_drug = local_rls(labels, observed, profile_and_similarity(labels, kernel, alpha=0.3, gamma=2.0))
    by_target = local_rls(
        labels.T, observed.T, profile_and_similarity(labels.T, np.eye(SHAPE[1]), alpha=0.3, gamma=2.0)
    ).T
    expected = np.maximum(by_drug, by_target)
    no_target, no_drug = ~labels.any(axis=0), ~labels.any(axis=1)
    expected[:, no_target] = by_target[:, no_target]
    expected[no_drug] = by_drug[no_drug]
    np.testing.assert_allclose(model.scores_, expected, atol=1e-12)
    assert no_drug.any() or no_target.any()


def test_labels_without_anything_to_separate_are_one_clear_line() -> None:
    with pytest.raises(
        InputError, match=r"no drug and no target has observed labels of both kinds.*local=rls"
    ) as caught:
        BLM(np.eye(2), np.eye(2), local="svm").fit_matrix(np.ones((2, 2)))
    assert "\n" not in str(caught.value)
    assert BLM(np.eye(2), np.eye(2)).fit_matrix(np.ones((2, 2))).scores_.all()
