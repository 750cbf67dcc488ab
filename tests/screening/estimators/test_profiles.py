"""Nearest and weighted profile against a second, slow formulation."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stillroom.screening._checks import Array
from stillroom.screening.estimators._profiles import voting_similarity
from stillroom.screening.estimators.nearest_profile import NearestProfile, nearest_profile
from stillroom.screening.estimators.weighted_profile import WeightedProfile, weighted_profile


@st.composite
def labelled(draw: st.DrawFn) -> tuple[Array, Array]:
    """Draw labels [m, n] and a similarity [m, m] with ties, zeros and negative values."""
    m, n = draw(st.integers(2, 6)), draw(st.integers(1, 4))
    entries = st.sampled_from([-0.5, 0.0, 0.25, 0.5, 1.0])
    similarity = np.array(draw(st.lists(entries, min_size=m * m, max_size=m * m))).reshape(m, m)
    labels = np.array(draw(st.lists(st.sampled_from([0.0, 1.0]), min_size=m * n, max_size=m * n))).reshape(m, n)
    return labels, np.maximum(similarity, similarity.T)


def neighbours_of(row: int, labels: Array) -> list[int]:
    return [other for other in range(len(labels)) if other != row and labels[other].any()]


@settings(max_examples=60)
@given(labelled())
def test_the_nearest_profile_is_that_of_the_most_similar_rows(problem: tuple[Array, Array]) -> None:
    labels, similarity = problem
    scores = nearest_profile(labels, similarity)
    for row, score in enumerate(scores):
        others = neighbours_of(row, labels)
        best = max((similarity[row, other] for other in others), default=0.0)
        tied = [labels[other] for other in others if similarity[row, other] == best]
        expected = best * np.mean(tied, axis=0) if best > 0 else np.zeros(labels.shape[1])
        np.testing.assert_allclose(score, expected, atol=1e-12)


@settings(max_examples=60)
@given(labelled())
def test_the_weighted_profile_is_the_mean_weighted_by_similarity(problem: tuple[Array, Array]) -> None:
    labels, similarity = problem
    scores = weighted_profile(labels, similarity)
    for row, score in enumerate(scores):
        others = [other for other in neighbours_of(row, labels) if similarity[row, other] > 0]
        weights = [similarity[row, other] for other in others]
        expected = np.average(labels[others], axis=0, weights=weights) if others else np.zeros(labels.shape[1])
        np.testing.assert_allclose(score, expected, atol=1e-12)


@settings(max_examples=40)
@given(labelled(), st.randoms(use_true_random=False))
def test_the_order_of_drugs_does_not_matter_even_among_ties(problem: tuple[Array, Array], random: Any) -> None:
    labels, similarity = problem
    order = random.sample(range(len(labels)), len(labels))
    for profile in (nearest_profile, weighted_profile):
        moved = profile(labels[order], similarity[np.ix_(order, order)])
        np.testing.assert_allclose(moved, profile(labels, similarity)[order], atol=1e-12)


def test_voting_leaves_the_similarity_it_was_given_alone() -> None:
    similarity = np.ones((2, 2))
    voting_similarity(np.eye(2), similarity)
    assert similarity.tolist() == [[1, 1], [1, 1]]


@pytest.mark.parametrize(
    ("method", "profile"), [(NearestProfile, nearest_profile), (WeightedProfile, weighted_profile)]
)
def test_the_two_sides_are_the_profile_of_drugs_and_of_targets(method: Any, profile: Any) -> None:
    generator = np.random.default_rng(3)
    drugs, targets = (np.corrcoef(generator.normal(size=(size, 20))) for size in (7, 5))
    labels = (generator.random((7, 5)) < 0.3).astype(float)
    scores = {
        (side, combine): method(drugs, targets, side=side, combine=combine).fit_matrix(labels).scores_
        for side in ("drug", "target", "both")
        for combine in ("mean", "max")
    }
    by_drug, by_target = profile(labels, drugs), profile(labels.T, targets).T
    for combine in ("mean", "max"):
        np.testing.assert_allclose(scores["drug", combine], by_drug, atol=1e-12)
        np.testing.assert_allclose(scores["target", combine], by_target, atol=1e-12)
    np.testing.assert_allclose(scores["both", "mean"], (by_drug + by_target) / 2)
    np.testing.assert_allclose(scores["both", "max"], np.maximum(by_drug, by_target))
