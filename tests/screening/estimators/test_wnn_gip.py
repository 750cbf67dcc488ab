"""WNN-GIP: profiles of neighbours against a slow formulation, and what it is when nothing is new."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from screening.estimators.problems import problems
from stillroom.errors import InputError
from stillroom.screening._checks import Array
from stillroom.screening.estimators._rls import profile_and_similarity
from stillroom.screening.estimators.rls_kron import RLSKron, rls_kron
from stillroom.screening.estimators.wnn_gip import WNNGIP, neighbour_profiles, wnn_gip
from stillroom.screening.kernels.algebra import psd_repaired


def slow_profiles(labels: Array, similarity: Array, decay: float) -> Array:
    completed = labels.copy()
    known = [d for d in range(len(labels)) if labels[d].any()]
    for d in range(len(labels)):
        if d not in known:
            for rank, j in enumerate(sorted(known, key=lambda j: -similarity[d, j])):
                if decay**rank >= 1e-4:
                    completed[d] += decay**rank * labels[j]
    return completed


@settings(max_examples=40, deadline=None)
@given(problems(), st.sampled_from([0.0, 0.01, 0.5, 0.9, 1.0]))
def test_a_new_drug_gets_its_neighbours_profiles_the_nearest_counting_most(
    problem: tuple[Array, Array, Array], decay: float
) -> None:
    labels, drugs, _ = problem
    before = labels.copy()
    found = neighbour_profiles(labels, drugs, labels.sum(axis=1) == 0, decay=decay)
    np.testing.assert_allclose(found, slow_profiles(labels, drugs, decay), atol=1e-12)
    assert np.array_equal(labels, before)


def test_neighbours_whose_weight_is_below_a_ten_thousandth_do_not_count() -> None:
    known = 20
    labels = np.vstack([np.eye(known), np.zeros(known)])
    similarity = np.eye(known + 1)
    similarity[-1, :known] = similarity[:known, -1] = np.linspace(0.9, 0.1, known)
    weights = neighbour_profiles(labels, similarity, labels.sum(axis=1) == 0, decay=0.5)[-1]
    assert np.count_nonzero(weights) == 14  # 0.5^13 is 1.2e-4
    np.testing.assert_allclose(weights[:14], 0.5 ** np.arange(14))


@settings(max_examples=40, deadline=None)
@given(problems())
def test_kernels_come_from_the_labels_and_the_scores_from_the_completed_ones(
    problem: tuple[Array, Array, Array],
) -> None:
    labels, drugs, targets = problem
    found = wnn_gip(labels, drugs, targets, decay=0.6, alpha=0.3, gamma=2.0, sigma=0.5, diagonal_shift=0.2)
    shifted = drugs + 0.2 * np.eye(len(drugs)), targets + 0.2 * np.eye(len(targets))
    drug_kernel, target_kernel = (
        profile_and_similarity(rows, similarity, alpha=0.3, gamma=2.0, replace_new=True, psd="none")
        for rows, similarity in zip((labels, labels.T), shifted, strict=True)
    )
    by_drugs = slow_profiles(labels, shifted[0], 0.6)
    new = ~labels.any(axis=0)
    expected = by_drugs.copy()
    for t in np.flatnonzero(new):  # from what new drugs already got
        order = sorted(np.flatnonzero(~new), key=lambda j: -shifted[1][t, j])
        for rank, j in enumerate(order):
            expected[:, t] += 0.6**rank * by_drugs[:, j]
    np.testing.assert_allclose(found["completed"], expected, atol=1e-9)
    np.testing.assert_allclose(found["drug_kernel"], drug_kernel, atol=1e-12)
    np.testing.assert_allclose(found["target_kernel"], target_kernel, atol=1e-12)
    repaired = rls_kron(psd_repaired(drug_kernel), psd_repaired(target_kernel), expected, sigma=0.5)
    np.testing.assert_allclose(found["scores"], repaired, atol=1e-9)


@settings(max_examples=30, deadline=None)
@given(problems(new=False), st.sampled_from([0.3, 1.0]))
def test_it_is_rls_kron_on_shifted_similarities_where_nothing_is_new(
    problem: tuple[Array, Array, Array], alpha: float
) -> None:
    labels, drugs, targets = problem
    model = WNNGIP(drugs, targets, alpha=alpha, sigma=0.5, diagonal_shift=0.3).fit_matrix(labels)
    shifted = drugs + 0.3 * np.eye(len(drugs)), targets + 0.3 * np.eye(len(targets))
    expected = RLSKron(*shifted, alpha=alpha, sigma=0.5).fit_matrix(labels)
    np.testing.assert_allclose(model.scores_, expected.scores_, atol=1e-9)


@settings(max_examples=30, deadline=None)
@given(problems())
def test_the_estimator_gives_the_scores_of_the_function(problem: tuple[Array, Array, Array]) -> None:
    labels, drugs, targets = problem
    options: dict[str, Any] = {"decay": 0.6, "alpha": 0.3, "gamma": 2.0, "sigma": 0.5, "diagonal_shift": 0.2}
    for psd in ("clip", "shift"):
        options["psd"] = psd
        model = WNNGIP(drugs, targets, **options).fit_matrix(labels)
        expected = wnn_gip(labels, drugs, targets, **options)["scores"]
        np.testing.assert_array_equal(model.scores_, expected)


def test_a_new_drug_is_like_the_known_one_it_is_most_similar_to() -> None:
    labels = np.array([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 0]])
    drugs = np.full((4, 4), 0.1) + 0.9 * np.eye(4)
    drugs[3, 1] = drugs[1, 3] = 0.8
    model = WNNGIP(drugs, np.eye(3)).fit_matrix(labels)
    assert model.scores_[3].argmax() == 1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"decay": 1.5}, "decay is 1.5; it must be a number at least 0 and at most 1"),
        ({"decay": -0.1}, "decay is -0.1"),
        ({"diagonal_shift": -1}, "diagonal_shift is -1; it must be a number at least 0"),
        ({"alpha": 2}, "alpha is 2"),
        ({"psd": "clop"}, "unknown psd 'clop'; did you mean 'clip'?"),
    ],
)
def test_a_bad_option_is_one_line(options: dict[str, float], said: str) -> None:
    with pytest.raises(InputError) as caught:
        WNNGIP(np.eye(2), np.eye(2)).set_params(**options).fit_matrix(np.eye(2))
    assert str(caught.value).startswith(said)
