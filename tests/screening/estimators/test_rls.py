"""Regularised least squares: the kernels, one side, both averaged, and all pairs at once, each against a dense twin."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.kernel_ridge import KernelRidge

from screening.estimators.problems import kernel
from stillroom.errors import InputError
from stillroom.screening._checks import Array
from stillroom.screening.estimators._rls import profile_and_similarity, rls_side
from stillroom.screening.estimators.rls_avg import RLSAvg
from stillroom.screening.estimators.rls_kron import RLSKron, rls_kron
from stillroom.screening.kernels.algebra import PSD, psd_repaired
from stillroom.screening.kernels.gip import gip_kernel


@st.composite
def problems(draw: st.DrawFn) -> tuple[Array, Array, Array]:
    """Draw labels [m, n] with at least a one, and a kernel of each side."""
    m, n, seed = draw(st.integers(1, 6)), draw(st.integers(1, 6)), draw(st.integers(0, 2**32 - 1))
    generator = np.random.default_rng(seed)
    labels = (generator.random((m, n)) < draw(st.sampled_from([0.1, 0.4]))).astype(float)
    labels[generator.integers(m), generator.integers(n)] = 1
    return labels, kernel(m, generator), kernel(n, generator)


@settings(max_examples=60, deadline=None)
@given(problems(), st.sampled_from([0.1, 1.0, 7.0]))
def test_rls_kron_is_the_dense_solve_with_the_kronecker_product(
    problem: tuple[Array, Array, Array], sigma: float
) -> None:
    labels, drugs, targets = problem
    product = np.kron(drugs, targets)  # the row of pair (d, t) is at d * n + t, as ravel has it
    dense = product @ np.linalg.solve(product + sigma * np.eye(len(product)), labels.ravel())
    np.testing.assert_allclose(rls_kron(drugs, targets, labels, sigma=sigma), dense.reshape(labels.shape), atol=1e-9)


@settings(max_examples=30, deadline=None)
@given(problems())
def test_rls_kron_on_the_transpose_is_transposed(problem: tuple[Array, Array, Array]) -> None:
    labels, drugs, targets = problem
    np.testing.assert_allclose(rls_kron(targets, drugs, labels.T), rls_kron(drugs, targets, labels).T, atol=1e-9)


@settings(max_examples=30, deadline=None)
@given(problems(), st.sampled_from([0.25, 1.0]))
def test_one_side_is_the_kernel_ridge_regression_of_scikit_learn(
    problem: tuple[Array, Array, Array], sigma: float
) -> None:
    labels, drugs, _ = problem
    ridge = KernelRidge(alpha=sigma, kernel="precomputed").fit(drugs, labels)
    np.testing.assert_allclose(rls_side(drugs, labels, sigma=sigma), ridge.predict(drugs), atol=1e-9)


@settings(max_examples=30, deadline=None)
@given(problems(), st.sampled_from([0.0, 0.3, 1.0]), st.sampled_from([0.5, 2.0]))
def test_the_kernel_mixes_similarity_and_profiles(
    problem: tuple[Array, Array, Array], alpha: float, gamma: float
) -> None:
    labels, drugs, _ = problem
    mixed = profile_and_similarity(labels, drugs, alpha=alpha, gamma=gamma)
    expected = alpha * drugs + (1 - alpha) * gip_kernel(labels, gamma=gamma)
    np.testing.assert_allclose(mixed, expected, atol=1e-12)


@settings(max_examples=30, deadline=None)
@given(problems())
def test_new_ones_keep_the_similarity_alone_where_that_is_asked_for(problem: tuple[Array, Array, Array]) -> None:
    labels, drugs, _ = problem
    replaced = profile_and_similarity(labels, drugs, alpha=0.3, gamma=1.0, replace_new=True, psd="none")
    plain = profile_and_similarity(labels, drugs, alpha=0.3, gamma=1.0, psd="none")
    for i in range(len(labels)):
        for j in range(len(labels)):
            expected = plain if labels[i].any() and labels[j].any() else drugs
            assert replaced[i, j] == expected[i, j]


@pytest.mark.parametrize("psd", ["clip", "shift", "flip", "none"])
def test_an_indefinite_kernel_is_mended_as_asked(psd: PSD) -> None:
    labels = np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    similarity = np.array([[1.0, 0.9, -0.9], [0.9, 1.0, 0.9], [-0.9, 0.9, 1.0]])
    bare = profile_and_similarity(labels, similarity, alpha=0.9, gamma=1.0, psd="none")
    assert np.linalg.eigvalsh(bare)[0] < -0.1
    mended = profile_and_similarity(labels, similarity, alpha=0.9, gamma=1.0, psd=psd)
    np.testing.assert_allclose(mended, psd_repaired(bare, psd), atol=1e-12)
    if psd != "none":
        assert np.linalg.eigvalsh(mended)[0] > -1e-9


@settings(max_examples=30, deadline=None)
@given(problems(), st.sampled_from([RLSAvg, RLSKron]))
def test_the_repair_changes_nothing_on_kernels(
    problem: tuple[Array, Array, Array], kind: type[RLSAvg | RLSKron]
) -> None:
    labels, drugs, targets = problem
    clipped, bare = (kind(drugs, targets, psd=psd).fit_matrix(labels) for psd in ("clip", "none"))
    # Eigenvalues that are zero but for rounding may be clipped.
    np.testing.assert_allclose(clipped.scores_, bare.scores_, atol=1e-9)


@settings(max_examples=30, deadline=None)
@given(problems(), st.sampled_from([0.0, 0.5, 1.0]))
def test_rls_avg_is_the_mean_of_both_sides(problem: tuple[Array, Array, Array], alpha: float) -> None:
    labels, drugs, targets = problem
    by_drug = rls_side(alpha * drugs + (1 - alpha) * gip_kernel(labels, gamma=2.0), labels, sigma=0.5)
    by_target = rls_side(alpha * targets + (1 - alpha) * gip_kernel(labels.T, gamma=2.0), labels.T, sigma=0.5)
    model = RLSAvg(drugs, targets, alpha=alpha, gamma=2.0, sigma=0.5).fit_matrix(labels)
    np.testing.assert_allclose(model.scores_, (by_drug + by_target.T) / 2, atol=1e-9)


@settings(max_examples=30, deadline=None)
@given(problems(), st.sampled_from([0.0, 0.5, 1.0]))
def test_the_estimator_of_rls_kron_mixes_the_kernels_of_both_sides(
    problem: tuple[Array, Array, Array], alpha: float
) -> None:
    labels, drugs, targets = problem
    drug_kernel = alpha * drugs + (1 - alpha) * gip_kernel(labels, gamma=2.0)
    target_kernel = alpha * targets + (1 - alpha) * gip_kernel(labels.T, gamma=2.0)
    model = RLSKron(drugs, targets, alpha=alpha, gamma=2.0, sigma=0.5).fit_matrix(labels)
    np.testing.assert_allclose(model.scores_, rls_kron(drug_kernel, target_kernel, labels, sigma=0.5), atol=1e-9)


@pytest.mark.parametrize("kind", [RLSAvg, RLSKron])
@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("alpha", 1.5, "alpha is 1.5; it must be a number at least 0 and at most 1"),
        ("alpha", -0.1, "alpha is -0.1"),
        ("gamma", 0, "gamma is 0; it must be a number above 0"),
        ("sigma", 0.0, "sigma is 0.0; it must be a number above 0"),
        ("sigma", "1", "sigma is '1'"),
        ("psd", "clop", "unknown psd 'clop'; did you mean 'clip'?"),
    ],
)
def test_a_bad_option_is_one_line(kind: type[RLSAvg | RLSKron], option: str, value: object, said: str) -> None:
    with pytest.raises(InputError) as caught:
        kind(np.eye(2), np.eye(2)).set_params(**{option: value}).fit_matrix(np.eye(2))
    assert str(caught.value).startswith(said)


def test_a_system_that_has_no_solution_is_one_line() -> None:
    crossed = np.array([[0.0, 1.0], [1.0, 0.0]])  # eigenvalues -1 and 1: with sigma 1 nothing can be solved
    with pytest.raises(InputError, match=r"sigma[^\n]*psd"):
        RLSAvg(crossed, np.eye(2), alpha=1.0, psd="none").fit_matrix(np.eye(2))


@settings(max_examples=40, deadline=None)
@given(problems(), st.sampled_from([0.5, 1.0]), st.data())
def test_drugs_and_targets_without_an_observed_pair_are_scored_through_their_similarity(
    problem: tuple[Array, Array, Array], sigma: float, data: st.DataObject
) -> None:
    labels, drugs, targets = problem
    row, column = np.argwhere(labels)[0]
    seen_drugs, seen_targets = (
        np.array([data.draw(st.booleans()) or place == known for place in range(size)])
        for size, known in ((len(drugs), row), (len(targets), column))
    )
    model = RLSKron(drugs, targets, alpha=1.0, sigma=sigma)
    scores = model.fit_matrix(labels, np.outer(seen_drugs, seen_targets)).scores_
    product = np.kron(drugs, targets)
    seen = np.outer(seen_drugs, seen_targets).ravel()
    regular = product[np.ix_(seen, seen)] + sigma * np.eye(seen.sum())
    dense = product[:, seen] @ np.linalg.solve(regular, labels.ravel()[seen])
    np.testing.assert_allclose(scores, dense.reshape(labels.shape), atol=1e-9)


def test_pairs_new_on_both_sides_are_not_ranked_the_wrong_way_round() -> None:
    labels = np.kron(np.eye(3), np.ones((4, 4)))  # drugs of a family interact with the targets of one
    similarity = np.kron(np.eye(3), np.ones((4, 4))) * 0.5 + 0.3 + 0.2 * np.eye(12)
    known = np.arange(12) % 4 > 0
    model = RLSKron(similarity, similarity).fit_matrix(labels, np.outer(known, known))
    scores = model.scores_[np.ix_(~known, ~known)]
    assert scores[np.eye(3, dtype=bool)].min() > scores[~np.eye(3, dtype=bool)].max()
