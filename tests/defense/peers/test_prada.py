from __future__ import annotations

import math
import sys
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from defense.peers.asked import SECRET, ask
from stillroom.defense.dadd import DetectAndPoison
from stillroom.defense.poison import KeyedPoison
from stillroom.defense.prada import PRADA, PradaOptions, prada_stream, shapiro_statistic
from stillroom.errors import InputError, MissingExtraError

QUICK = PradaOptions(check_every=5, per_class_min=3, min_distances=10)


def natural(count: int, seed: int, width: int = 32) -> NDArray[np.float64]:
    return np.random.default_rng(seed).standard_normal((count, width))


def synthesised(rounds: int, seed: int) -> NDArray[np.float64]:
    """Natural queries and, round by round, each known one moved a little: what Jacobian augmentation sends."""
    rng = np.random.default_rng(seed)
    known = natural(40, seed)
    for _ in range(rounds):
        known = np.concatenate([known, known + 0.1 * rng.choice([-1.0, 1.0], known.shape)])
    return known


def watch(detector: PRADA, points: NDArray[Any], classes: NDArray[Any], cuts: list[int], account: str = "eve") -> Any:
    """Send points as features, in requests that end at the cuts."""
    scores = []
    edges = [0, *sorted(set(cuts)), len(points)]
    for start, end in pairwise(edges):
        if end > start:
            logits = np.eye(3)[classes[start:end]]
            scores.append(detector.watch(ask(logits, features=points[start:end], account=account)))
    return np.concatenate(scores)


def test_natural_queries_raise_no_alarm_and_synthesised_ones_do() -> None:
    honest = prada_stream(natural(640, 0), np.zeros(640, np.int64), delta=0.95)
    stolen = synthesised(4, 0)
    thief = prada_stream(stolen, np.zeros(len(stolen), np.int64), delta=0.95)
    assert not honest.alarm.any()
    assert thief.alarm[-1]
    assert thief.state.statistic < 0.9 < honest.state.statistic


@given(st.integers(0, 99), st.lists(st.integers(1, 79), max_size=8))
@settings(max_examples=25, deadline=None)
def test_the_scores_do_not_depend_on_how_queries_are_split_into_requests(seed: int, cuts: list[int]) -> None:
    points, classes = natural(80, seed, 3), np.random.default_rng(seed).integers(0, 3, 80)
    trace = prada_stream(points, classes, delta=0.9, options=QUICK)
    scores = watch(PRADA(delta=0.9, space="features", options=QUICK), points, classes, cuts)
    tested = np.isfinite(trace.statistic)
    assert tested.any()
    np.testing.assert_array_equal(scores[tested], 1 - trace.statistic[tested])


def test_an_alarm_is_a_score_above_the_threshold_and_stands_until_the_next_test() -> None:
    points = np.concatenate([natural(100, 1, 2), np.repeat(natural(1, 2, 2), 60, 0)])
    classes = np.zeros(len(points), np.int64)
    detector = PRADA(delta=0.93, space="features", options=QUICK)
    trace = prada_stream(points, classes, delta=0.93, options=QUICK)
    scores = watch(detector, points, classes, [])
    np.testing.assert_array_equal(scores > detector.threshold, trace.alarm)
    assert trace.alarm.any()
    assert not trace.alarm.all()
    first = int(np.flatnonzero(np.isfinite(scores))[0])
    assert np.isnan(scores[:first]).all()
    assert np.isfinite(scores[first:]).all()
    between = np.flatnonzero(np.isnan(trace.statistic[first:])) + first
    np.testing.assert_array_equal(scores[between], scores[between - 1])


@given(st.integers(0, 99), st.sampled_from([0.125, 4.0, 256.0]))
@settings(max_examples=15, deadline=None)
def test_the_scale_of_the_pixels_changes_only_the_thresholds(seed: int, scale: float) -> None:
    points, classes = natural(60, seed, 4), np.random.default_rng(seed).integers(0, 2, 60)
    one = prada_stream(points, classes, options=QUICK)
    other = prada_stream(points * scale, classes, options=QUICK)
    np.testing.assert_array_equal(one.set_size, other.set_size)
    np.testing.assert_allclose(one.statistic, other.statistic, rtol=1e-12)
    for label, threshold in one.state.thresholds.items():
        assert other.state.thresholds[label] == pytest.approx(scale * threshold)


def test_accounts_are_not_mixed() -> None:
    classes = np.zeros(60, np.int64)
    alone = watch(PRADA(space="features", options=QUICK), natural(60, 5, 3), classes, [])
    detector = PRADA(space="features", options=QUICK)
    for step in range(60):
        watch(detector, natural(60, 6, 3)[step : step + 1], classes[:1], [], account="other")
        last = watch(detector, natural(60, 5, 3)[step : step + 1], classes[:1], [])
    assert last[0] == alone[-1]


def test_bytes_are_measured_like_the_numbers_they_stand_for() -> None:
    images = np.random.default_rng(0).integers(0, 256, (60, 3, 4, 4), np.uint8)
    logits = np.eye(2)[np.zeros(60, int)]
    scores = PRADA(options=QUICK).watch(ask(logits, images=images))
    exact = PRADA(options=QUICK).watch(ask(logits, images=images.astype(np.float64)))
    np.testing.assert_allclose(scores, exact, rtol=1e-4)
    assert np.isfinite(scores[-1])


def test_what_is_remembered_stays_within_the_caps() -> None:
    options = PradaOptions(max_set=7, max_distances=20, min_distances=10)
    state = prada_stream(natural(400, 0, 8), np.zeros(400, np.int64), options=options).state
    assert state.set_sizes == {0: 7}
    assert len(state.sets[0].distances) == 20
    assert math.isfinite(state.statistic)


def test_an_account_that_repeats_one_query_is_never_tested() -> None:
    trace = prada_stream(np.ones((300, 4)), np.zeros(300, np.int64))
    assert np.isnan(trace.statistic).all()
    assert trace.set_size[-1] == 1


def test_a_forgotten_account_starts_anew() -> None:
    detector = PRADA(space="features", options=QUICK)
    points, classes = natural(60, 0, 3), np.zeros(60, np.int64)
    first = watch(detector, points, classes, [])
    detector.forget("eve")
    detector.forget("nobody")
    np.testing.assert_array_equal(watch(detector, points, classes, []), first)


def test_a_guard_of_it_poisons_the_thief_and_not_the_honest_user() -> None:
    detector = PRADA(delta=0.95, space="features")
    guard = DetectAndPoison(detector, detector.threshold, KeyedPoison(SECRET))
    stolen = synthesised(4, 0)
    thief = guard.answer(ask(np.eye(3)[np.zeros(len(stolen), int)], features=stolen))
    honest = guard.answer(ask(np.eye(3)[np.zeros(640, int)], features=natural(640, 0), account="ada"))
    assert thief.altered[-10:].all()
    assert not honest.altered.any()


def test_the_statistic_agrees_with_its_closed_form_for_three_values() -> None:
    # For n = 3 the weights are (-1, 0, 1) / sqrt(2), so W = (max - min)² / 2 / sum of squares.
    assert shapiro_statistic(np.array([0.0, 1.0, 5.0])) == pytest.approx(25 / 2 / 14)


def test_a_missing_scipy_is_named_with_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy.stats", None)
    with pytest.raises(MissingExtraError, match=r"scipy is not installed.*stillroom\[serve\]"):
        shapiro_statistic(np.arange(5.0))


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (lambda: PRADA(delta=1.5), "delta is 1.5"),
        (lambda: PRADA(delta=math.nan), "delta is nan"),
        (lambda: PRADA(space="pixels"), "unknown space 'pixels'"),  # type: ignore[arg-type]
        (lambda: PradaOptions(check_every=0), "check_every is 0"),
        (lambda: PradaOptions(max_set=0), "max_set is 0"),
        (lambda: PradaOptions(min_distances=1), "min_distances is 1"),
        (lambda: PradaOptions(outlier_sigma=math.nan), "outlier_sigma is nan"),
        (lambda: prada_stream(np.zeros((2, 2)), np.zeros(3, np.int64)), "2 queries and 3 classes"),
        (lambda: prada_stream(np.full((2, 2), np.nan), np.zeros(2, np.int64)), "not finite"),
    ],
)
def test_impossible_values_are_refused(build: Any, says: str) -> None:
    with pytest.raises(InputError, match=says):
        build()
