"""Every measure against its definition by brute force, against another library, and without an order among ties."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import sklearn.metrics
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from rdkit.ML.Scoring import Scoring

from stillroom.errors import InputError
from stillroom.screening.metrics import (
    auc,
    aupr,
    average_precision,
    bedroc,
    enrichment_factor,
    measure,
    precision_at,
)

Ranked = tuple[NDArray[Any], NDArray[Any]]

RDKIT: Any = Scoring  # it brings no types


def ranked(least: int, most: int) -> st.SearchStrategy[Ranked]:
    """Labels of both classes, and scores with many ties."""
    pairs = st.lists(st.tuples(st.booleans(), st.integers(-3, 3)), min_size=least, max_size=most)
    both = pairs.filter(lambda rows: len({label for label, _ in rows}) == 2)
    return both.map(
        lambda rows: (np.array([row[0] for row in rows], dtype=int), np.array([row[1] / 2 for row in rows]))
    )


def expected_over_orders(labels: NDArray[Any], scores: NDArray[Any], value: Callable[[list[int]], float]) -> float:
    """The mean of a value of the ordered labels over every order the scores allow."""
    orders = [
        [int(labels[i]) for i in order]
        for order in itertools.permutations(range(len(labels)))
        if all(scores[a] >= scores[b] for a, b in itertools.pairwise(order))
    ]
    return float(np.mean([value(order) for order in orders]))


@given(ranked(2, 30))
def test_auc_is_the_share_of_pairs_in_order_with_ties_one_half(case: Ranked) -> None:
    labels, scores = case
    good, bad = scores[labels == 1], scores[labels == 0]
    shares = [1.0 if g > b else 0.5 if g == b else 0.0 for g in good for b in bad]
    assert auc(labels, scores) == pytest.approx(np.mean(shares), abs=1e-12)
    assert auc(labels, scores) == pytest.approx(sklearn.metrics.roc_auc_score(labels, scores), abs=1e-12)


@given(ranked(2, 30))
def test_areas_under_precision_and_recall_are_trapezoids_and_steps_between_thresholds(case: Ranked) -> None:
    labels, scores = case
    points = [(0.0, 1.0)]
    for threshold in sorted(set(scores), reverse=True):
        taken = labels[scores >= threshold]
        points.append((taken.sum() / labels.sum(), taken.mean()))
    pairs = list(itertools.pairwise(points))
    trapezoids = sum((r1 - r0) * (p0 + p1) / 2 for (r0, p0), (r1, p1) in pairs)
    steps = sum((r1 - r0) * p1 for (r0, _), (r1, p1) in pairs)
    assert aupr(labels, scores) == pytest.approx(trapezoids, abs=1e-12)
    assert average_precision(labels, scores) == pytest.approx(steps, abs=1e-12)
    precision, recall, _ = sklearn.metrics.precision_recall_curve(labels, scores)
    assert aupr(labels, scores) == pytest.approx(sklearn.metrics.auc(recall, precision), abs=1e-12)
    expected = sklearn.metrics.average_precision_score(labels, scores)
    assert average_precision(labels, scores) == pytest.approx(expected, abs=1e-12)


@settings(max_examples=40)
@given(ranked(2, 6), st.integers(1, 8))
def test_precision_at_k_is_the_expectation_over_the_orders_of_ties(case: Ranked, k: int) -> None:
    expected = expected_over_orders(*case, value=lambda order: sum(order[:k]) / k)
    assert precision_at(*case, k) == pytest.approx(expected, abs=1e-12)


@settings(max_examples=40)
@given(ranked(2, 6), st.sampled_from([0.01, 0.2, 0.5, 0.7, 1.0]))
def test_enrichment_is_the_expectation_over_the_orders_of_ties(case: Ranked, fraction: float) -> None:
    labels, _ = case
    k = math.ceil(round(fraction * len(labels), 6))

    def value(order: list[int]) -> float:
        return (sum(order[:k]) / k) / (sum(order) / len(order))

    assert enrichment_factor(*case, fraction) == pytest.approx(expected_over_orders(*case, value=value), abs=1e-12)


@settings(max_examples=40)
@given(ranked(2, 6), st.sampled_from([0.5, 20.0, 160.9]))
def test_bedroc_is_the_expectation_over_the_orders_of_ties(case: Ranked, alpha: float) -> None:
    expected = expected_over_orders(*case, value=lambda order: RDKIT.CalcBEDROC([[label] for label in order], 0, alpha))
    assert bedroc(*case, alpha) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("alpha", [1.0, 20.0, 100.0])
def test_bedroc_and_enrichment_of_a_long_list_are_those_of_rdkit(alpha: float) -> None:
    random = np.random.default_rng(5)
    labels = (random.random(700) < 0.05).astype(int)
    scores = random.permutation(700) + 200.5 * labels
    order = [[label] for label in labels[np.argsort(-scores)]]
    assert bedroc(labels, scores, alpha) == pytest.approx(RDKIT.CalcBEDROC(order, 0, alpha), abs=1e-9)
    for fraction in (0.01, 0.05, 0.1):
        expected = RDKIT.CalcEnrichment(order, 0, [fraction])[0]
        assert enrichment_factor(labels, scores, fraction) == pytest.approx(expected, abs=1e-9)


def test_seven_hundredths_of_a_hundred_pairs_are_seven() -> None:
    assert 0.07 * 100 > 7
    labels = np.array([1] * 7 + [0] * 93)
    assert enrichment_factor(labels, -np.arange(100), 0.07) == pytest.approx(100 / 7, abs=1e-12)


@pytest.mark.parametrize("alpha", [1e-6, 1e5])
def test_bedroc_spans_0_to_1_at_extreme_alpha(alpha: float) -> None:
    labels = np.array([1] * 3 + [0] * 400)
    scores = np.arange(403.0)
    assert bedroc(labels, -scores, alpha) == pytest.approx(1, abs=1e-6)
    assert bedroc(labels, scores, alpha) == pytest.approx(0, abs=1e-6)


@given(ranked(2, 30), st.randoms())
def test_neither_the_order_of_pairs_nor_the_scale_of_scores_matters(case: Ranked, random: Any) -> None:
    labels, scores = case
    order = list(range(len(labels)))
    random.shuffle(order)
    measures, again = measure(labels, scores), measure(labels[order], np.exp(scores[order]) - 7)
    assert measures is not None
    assert again is not None
    assert again == pytest.approx(measures, abs=1e-12)


@given(ranked(2, 30))
def test_scores_that_say_nothing_measure_as_chance(case: Ranked) -> None:
    labels, scores = case
    measures = measure(labels, np.zeros_like(scores))
    assert measures is not None
    assert measures["auc"] == 0.5
    assert measures["average_precision"] == pytest.approx(labels.mean(), abs=1e-12)
    assert measures["enrichment_1pct"] == pytest.approx(1, abs=1e-12)
    assert precision_at(labels, np.zeros_like(scores), 1) == pytest.approx(labels.mean(), abs=1e-12)


def test_the_measures_of_a_fold_are_those_of_the_functions() -> None:
    random = np.random.default_rng(6)
    labels, scores = (random.random(300) < 0.2).astype(float), random.integers(0, 40, 300)
    assert measure(labels, scores) == {
        "auc": auc(labels, scores),
        "aupr": aupr(labels, scores),
        "average_precision": average_precision(labels, scores),
        "precision_at_10": precision_at(labels, scores, 10),
        "enrichment_1pct": enrichment_factor(labels, scores, 0.01),
        "bedroc": bedroc(labels, scores, 20.0),
    }


def test_a_fold_of_one_class_has_no_measures() -> None:
    assert measure([0, 0, 0], [1, 2, 3]) is None
    assert measure([1, 1], [1, 2]) is None


@pytest.mark.parametrize("function", [auc, aupr, average_precision, enrichment_factor, bedroc, measure])
@pytest.mark.parametrize(
    ("labels", "scores", "words"),
    [
        ([1, 0, 1], [1.0, np.nan, np.inf], "2 of 3 scores are NaN or infinite"),
        ([1, 0, 2], [1.0, 2.0, 3.0], r"label 2 \(counted from 0\) is 2"),
        ([1, 0, np.nan], [1.0, 2.0, 3.0], r"label 2 \(counted from 0\) is nan"),
        ([1, 0], [1.0, 2.0, 3.0], r"labels have shape \[2\], scores \[3\]"),
        ([], [], r"labels have shape \[0\]"),
        ([[1, 0]], [[1.0, 2.0]], r"labels have shape \[1, 2\]"),
    ],
)
def test_what_cannot_be_ranked_is_refused(
    function: Callable[[Any, Any], Any], labels: Any, scores: Any, words: str
) -> None:
    with pytest.raises(InputError, match=words) as caught:
        function(labels, scores)
    assert "\n" not in str(caught.value)


def test_a_measure_that_needs_a_class_says_so() -> None:
    for function in (auc, aupr, average_precision, enrichment_factor, bedroc):
        with pytest.raises(InputError, match="none of the 2 pairs is labelled 1"):
            function([0, 0], [1, 2])
    for function in (auc, bedroc):
        with pytest.raises(InputError, match="none of the 2 pairs is labelled 0"):
            function([1, 1], [1, 2])


def test_options_outside_their_range_are_refused() -> None:
    with pytest.raises(InputError, match="k is 0"):
        precision_at([1, 0], [1, 2], 0)
    with pytest.raises(InputError, match="fraction is 0"):
        enrichment_factor([1, 0], [1, 2], 0)
    with pytest.raises(InputError, match=r"fraction is 1\.5"):
        enrichment_factor([1, 0], [1, 2], 1.5)
    with pytest.raises(InputError, match="alpha is 0"):
        bedroc([1, 0], [1, 2], 0)
