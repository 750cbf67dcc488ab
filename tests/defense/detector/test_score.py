"""The window score: it is a Fréchet distance, it does not care about order or axes, it never guesses."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stillroom.defense.add import Reference, class_distances, fit_reference, frechet_distance, window_score
from stillroom.errors import InputError

CLASSES = 3


def drawn(seed: int, queries: int, width: int) -> tuple[Reference, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(CLASSES), rng.integers(CLASSES, size=30)])
    reference = fit_reference(rng.normal(size=(33, width)) + labels[:, None], labels, CLASSES)
    return reference, rng.normal(size=(queries, width)) * 2, rng.integers(CLASSES, size=queries)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), queries=st.integers(1, 20), width=st.integers(1, 12))
def test_each_class_distance_is_the_frechet_distance_of_the_two_normals(seed: int, queries: int, width: int) -> None:
    reference, features, classes = drawn(seed, queries, width)
    counts, distances = class_distances(reference, features, classes)
    assert counts.sum() == queries
    for c in range(CLASSES):
        own = features[classes == c]
        if len(own) == 0:
            assert np.isnan(distances[c])
            continue
        centred = own - own.mean(0)
        direct = frechet_distance(reference.mean[c], reference.cov[c], own.mean(0), centred.T @ centred / len(own))
        # The square root of an eigenvalue that is zero but for rounding: 1e-16 becomes 1e-8.
        assert distances[c] == pytest.approx(direct, rel=1e-6, abs=1e-5)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), queries=st.integers(1, 20))
def test_the_score_does_not_depend_on_the_order_of_the_queries_or_the_axes_of_the_features(
    seed: int, queries: int
) -> None:
    reference, features, classes = drawn(seed, queries, 5)
    score = window_score(reference, features, classes).score
    rng = np.random.default_rng(seed)
    order = rng.permutation(queries)
    assert window_score(reference, features[order], classes[order]).score == pytest.approx(score, rel=1e-6, abs=1e-6)
    turn = np.linalg.qr(rng.normal(size=(5, 5)))[0]
    turned = Reference(reference.mean @ turn, turn.T @ reference.cov @ turn)
    assert window_score(turned, features @ turn, classes).score == pytest.approx(score, rel=1e-6, abs=1e-6)


def test_the_training_data_of_a_class_are_at_distance_zero_from_their_own_normal() -> None:
    features = np.random.default_rng(0).normal(size=(50, 8))
    reference = fit_reference(features, np.zeros(50, np.int64), 1)
    assert window_score(reference, features, np.zeros(50, np.int64)).score == pytest.approx(0, abs=1e-6)


def test_a_single_query_is_as_far_as_its_point_and_the_spread_of_its_class() -> None:
    reference, features, classes = drawn(1, 1, 4)
    c = classes[0]
    expected = ((reference.mean[c] - features[0]) ** 2).sum() + np.trace(reference.cov[c])
    assert window_score(reference, features, classes).score == pytest.approx(expected)


def test_full_shrinkage_keeps_the_trace_and_nothing_else() -> None:
    rng = np.random.default_rng(0)
    features, labels = rng.normal(size=(40, 4)) * [1, 2, 3, 4], np.zeros(40, np.int64)
    plain, round_ = (fit_reference(features, labels, 1, shrinkage=share).cov[0] for share in (0.0, 1.0))
    assert round_ == pytest.approx(np.trace(plain) / 4 * np.eye(4))


@pytest.mark.parametrize(
    ("features", "classes", "said"),
    [
        (np.zeros((0, 4)), np.zeros(0, np.int64), "at least one"),
        (np.zeros((2, 4)), np.zeros(1, np.int64), "as many of both"),
        (np.full((1, 4), np.nan), np.zeros(1, np.int64), "not finite"),
        (np.zeros((1, 4)), np.array([CLASSES]), "outside 0..2"),
        (np.zeros((1, 4)), np.array([-1]), "outside 0..2"),
    ],
)
def test_a_window_that_says_nothing_is_refused_and_never_benign(
    features: np.ndarray, classes: np.ndarray, said: str
) -> None:
    reference = drawn(0, 1, 4)[0]
    with pytest.raises(InputError, match=said):
        window_score(reference, features, classes)


def test_a_reference_needs_every_class_and_finite_numbers() -> None:
    with pytest.raises(InputError, match="class 1 has no training sample"):
        fit_reference(np.zeros((3, 2)), np.array([0, 0, 2]), 3)
    with pytest.raises(InputError, match="shrinkage is 2"):
        fit_reference(np.zeros((3, 2)), np.array([0, 0, 0]), 1, shrinkage=2)
    with pytest.raises(InputError, match="4 GiB"):
        fit_reference(np.zeros((1, 1 << 14)), np.array([0]), 1000)
    with pytest.raises(InputError, match="not finite"):
        Reference(np.zeros((1, 2)), np.full((1, 2, 2), np.inf))
