"""Accounts over time: what was asked with what does not matter, who asked does; what is flagged is poisoned."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stillroom.defense.add import Reference, fit_reference, window_score
from stillroom.defense.contracts import Queries, softmax
from stillroom.defense.dadd import ADD, DetectAndPoison, Policy
from stillroom.defense.poison import KeyedPoison, fresh_poison
from stillroom.defense.windows import MemoryWindows
from stillroom.errors import InputError

WINDOW, CLASSES, WIDTH = 6, 3, 4
SECRET = b"sixteen bytes or more"


@pytest.fixture(scope="module")
def reference() -> Reference:
    rng = np.random.default_rng(0)
    labels = np.arange(60) % CLASSES
    return fit_reference(rng.normal(size=(60, WIDTH)) + labels[:, None], labels, CLASSES)


def asked(account: str, count: int, seed: int, *, away: float = 0.0) -> Queries:
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(count, CLASSES))
    features = rng.normal(size=(count, WIDTH)) + logits.argmax(1)[:, None] + away
    return Queries(
        account,
        rng.integers(0, 256, (count, 1, 3, 3)).astype(np.uint8),
        features.astype(np.float32),
        logits.astype(np.float32),
    )


def parts(queries: Queries, cuts: list[int]) -> Iterator[Queries]:
    ends = [0, *sorted(min(cut, len(queries)) for cut in cuts), len(queries)]
    for start, end in itertools.pairwise(ends):
        if end > start:
            own = slice(start, end)
            yield Queries(queries.account, queries.images[own], queries.features[own], queries.logits[own])


@settings(max_examples=40, deadline=None)
@given(
    count=st.integers(1, 25),
    cuts=st.lists(st.integers(0, 25), max_size=6),
    least=st.integers(1, WINDOW),
    policy=st.sampled_from(["sliding", "tumbling"]),
    seed=st.integers(0, 1000),
)
def test_scores_are_those_of_the_last_queries_however_they_came_in_requests(
    reference: Reference, count: int, cuts: list[int], least: int, policy: Policy, seed: int
) -> None:
    queries = asked("a", count, seed)
    detector = ADD(reference, MemoryWindows(WINDOW), min_queries=least, policy=policy)
    scores = np.concatenate([detector.watch(part) for part in parts(queries, cuts)])
    classes = queries.logits.argmax(1)
    for number in range(1, count + 1):
        due = number >= least if policy == "sliding" else number % WINDOW == 0
        last = slice(max(number - WINDOW, 0), number)
        expected = window_score(reference, queries.features[last], classes[last]).score if due else np.nan
        assert scores[number - 1] == pytest.approx(expected, nan_ok=True)


def test_an_account_is_judged_by_its_own_queries_only(reference: Reference) -> None:
    alone = ADD(reference, MemoryWindows(WINDOW)).watch(asked("honest", 20, 1))
    crowded, found = ADD(reference, MemoryWindows(WINDOW)), []
    for number, part in enumerate(parts(asked("honest", 20, 1), [3, 7, 8, 15])):
        crowded.watch(asked(f"thief {number % 2}", 9, number, away=50))
        found.append(crowded.watch(part))
    assert np.concatenate(found) == pytest.approx(alone, nan_ok=True)


def test_only_flagged_queries_are_poisoned_and_all_others_are_the_models_own(reference: Reference) -> None:
    scores = ADD(reference, MemoryWindows(WINDOW)).watch(asked("a", 30, 2))
    threshold = float(np.nanmedian(scores))
    defence = DetectAndPoison(ADD(reference, MemoryWindows(WINDOW)), threshold, KeyedPoison(SECRET))
    answers = defence.answer(asked("a", 30, 2))
    clean = softmax(asked("a", 30, 2).logits)
    assert answers.altered.tolist() == (scores > threshold).tolist()
    assert 5 < answers.altered.sum() < 20
    assert (answers.probabilities[~answers.altered] == clean[~answers.altered]).all()
    assert (np.abs(answers.probabilities - clean).max(1)[answers.altered] > 1e-3).all()
    assert answers.probabilities.sum(1) == pytest.approx(np.ones(30))


def test_the_score_must_be_above_the_threshold_not_at_it(reference: Reference) -> None:
    scores = ADD(reference, MemoryWindows(WINDOW)).watch(asked("a", WINDOW, 3))
    at = DetectAndPoison(ADD(reference, MemoryWindows(WINDOW)), float(scores[-1]), fresh_poison)
    assert not at.answer(asked("a", WINDOW, 3)).altered.any()


def test_a_flagged_tumbling_window_is_poisoned_as_a_whole(reference: Reference) -> None:
    detector = ADD(reference, MemoryWindows(WINDOW), policy="tumbling")
    defence = DetectAndPoison(detector, 20.0, KeyedPoison(SECRET), whole=WINDOW - 1)
    thief = asked("a", 2 * WINDOW + 2, 4, away=30)
    assert defence.answer(thief).altered.tolist() == [True] * (2 * WINDOW) + [False, False]


def test_a_repeated_query_gets_the_same_poison_and_no_other_account_or_secret_does() -> None:
    queries, poison = asked("a", 4, 5), KeyedPoison(SECRET)
    first = poison(queries)
    assert (poison(queries) == first).all()
    other = Queries("b", queries.images, queries.features, queries.logits)
    assert (poison(other) != first).all()
    assert (KeyedPoison(b"another secret of 16")(queries) != first).all()
    elsewhere = Queries("a", queries.images[::-1], queries.features, -queries.logits)
    assert (poison(elsewhere) == first[::-1]).all()  # neither the place in the request nor the true answer counts


def test_permuted_poison_is_as_confident_as_the_model_and_as_often_right_as_chance() -> None:
    queries = asked("a", 600, 6)
    answered = softmax(KeyedPoison(SECRET, style="permuted")(queries))
    clean = softmax(queries.logits)
    assert np.sort(answered, 1) == pytest.approx(np.sort(clean, 1))
    assert (answered.argmax(1) == clean.argmax(1)).mean() == pytest.approx(1 / CLASSES, abs=0.08)


def test_a_query_that_is_not_finite_is_refused_and_not_kept(reference: Reference) -> None:
    detector = ADD(reference, MemoryWindows(WINDOW))
    detector.watch(asked("a", WINDOW - 1, 7))
    for field in ("features", "logits"):
        bad = asked("a", 1, 8)
        getattr(bad, field)[0, 0] = np.nan
        with pytest.raises(InputError, match="not finite"):
            detector.watch(bad)
    assert np.isfinite(detector.watch(asked("a", 1, 9))).all()  # the sixth query


@pytest.mark.parametrize("least", [0, WINDOW + 1])
def test_bad_options_are_refused(reference: Reference, least: int) -> None:
    with pytest.raises(InputError, match=r"must lie in 1\.\.6"):
        ADD(reference, MemoryWindows(WINDOW), min_queries=least)
    with pytest.raises(InputError, match="unknown policy"):
        ADD(reference, MemoryWindows(WINDOW), policy="rolling")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="at least 16 bytes"):
        KeyedPoison(b"short")
    with pytest.raises(InputError, match="unknown style"):
        KeyedPoison(SECRET, style="loud")  # type: ignore[arg-type]
