"""NetLapRLS against the paper's product form, and what its Laplacian is."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.sparse.csgraph import laplacian

from stillroom.errors import InputError
from stillroom.screening._checks import Array
from stillroom.screening.estimators.net_lap_rls import NetLapRLS, net_lap_rls_side, normalised_laplacian


@st.composite
def problems(draw: st.DrawFn) -> tuple[Array, Array, Array]:
    """Draw labels [m, n] with a one, and similarities above 0 of both sides."""
    m, n, seed = draw(st.integers(2, 7)), draw(st.integers(2, 7)), draw(st.integers(0, 2**32 - 1))
    generator = np.random.default_rng(seed)
    labels = (generator.random((m, n)) < 0.3).astype(float)
    labels[0, 0] = 1
    similarities = [generator.uniform(0.05, 1, size=(size, size)) for size in (m, n)]
    drugs, targets = ((each + each.T) / 2 for each in similarities)
    return labels, drugs, targets


def weights_of(labels: Array, similarity: Array, gamma: float) -> Array:
    weights: Array = (similarity + gamma * (labels @ labels.T)) / (1 + gamma)
    return weights - np.diag(np.diag(weights))


@settings(max_examples=40, deadline=None)
@given(problems())
def test_the_laplacian_is_that_of_scipy(problem: tuple[Array, Array, Array]) -> None:
    weights = weights_of(problem[0], problem[1], 0.5)
    np.testing.assert_allclose(normalised_laplacian(weights), laplacian(weights, normed=True), atol=1e-12)


def test_a_drug_similar_to_none_stays_alone() -> None:
    weights = np.array([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    assert normalised_laplacian(weights)[2].tolist() == [0, 0, 1]
    scores = net_lap_rls_side(np.eye(3), weights, gamma=0.0, beta=1.0)
    assert scores[2].tolist() == [0, 0, 0.5]


@settings(max_examples=40, deadline=None)
@given(problems(), st.sampled_from([0.0, 0.01, 10.0]), st.sampled_from([0.0, 1e-5, 0.3, 4.0]))
def test_the_scores_are_the_papers_product_where_it_can_be_inverted(
    problem: tuple[Array, Array, Array], gamma: float, beta: float
) -> None:
    labels, drugs, _ = problem
    weights = weights_of(labels, drugs, gamma)
    assume(np.linalg.cond(weights) < 1e6)  # the product form has no answer to compare with otherwise
    system = weights + beta * laplacian(weights, normed=True) @ weights
    expected = weights @ np.linalg.solve(system, labels)
    np.testing.assert_allclose(net_lap_rls_side(labels, drugs, gamma=gamma, beta=beta), expected, atol=1e-6)


@settings(max_examples=30, deadline=None)
@given(problems())
def test_the_estimator_averages_both_sides_each_with_its_own_options(problem: tuple[Array, Array, Array]) -> None:
    labels, drugs, targets = problem
    model = NetLapRLS(drugs, targets, gamma_drug=0.1, gamma_target=2.0, beta_drug=0.5, beta_target=3.0)
    by_drug = net_lap_rls_side(labels, drugs, gamma=0.1, beta=0.5)
    by_target = net_lap_rls_side(labels.T, targets, gamma=2.0, beta=3.0)
    np.testing.assert_allclose(model.fit_matrix(labels).scores_, (by_drug + by_target.T) / 2, atol=1e-12)


@settings(max_examples=30, deadline=None)
@given(problems())
def test_on_the_transpose_the_scores_are_transposed(problem: tuple[Array, Array, Array]) -> None:
    labels, drugs, targets = problem
    straight = NetLapRLS(drugs, targets).fit_matrix(labels)
    turned = NetLapRLS(targets, drugs).fit_matrix(labels.T)
    np.testing.assert_allclose(turned.scores_, straight.scores_.T, atol=1e-9)


@settings(max_examples=30, deadline=None)
@given(problems())
def test_without_regularisation_the_labels_come_back(problem: tuple[Array, Array, Array]) -> None:
    labels, drugs, targets = problem
    model = NetLapRLS(drugs, targets, beta_drug=0.0, beta_target=0).fit_matrix(labels)
    np.testing.assert_allclose(model.scores_, labels, atol=1e-12)


@pytest.mark.parametrize("option", ["gamma_drug", "gamma_target", "beta_drug", "beta_target"])
def test_a_negative_strength_is_one_line(option: str) -> None:
    with pytest.raises(InputError, match=rf"^{option} is -1; it must be a number at least 0$"):
        NetLapRLS(np.eye(2), np.eye(2)).set_params(**{option: -1}).fit_matrix(np.eye(2))


def test_similarities_whose_sum_is_negative_are_refused() -> None:
    similarity = np.array([[1.0, -0.5], [-0.5, 1.0]])
    with pytest.raises(InputError, match=r"^the smallest row sum of the similarities is -0\.5"):
        NetLapRLS(similarity, np.eye(2), gamma_drug=0).fit_matrix(np.eye(2))
