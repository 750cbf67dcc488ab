"""Linking accounts by what newcomers have in common, on normal features whose truth is known."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stillroom.defense.add import fit_reference
from stillroom.defense.calibrate import draw_windows, quantile_threshold, window_scores
from stillroom.defense.contracts import Queries
from stillroom.defense.dadd import ADD, DetectAndPoison
from stillroom.defense.linking import Linked, fisher_map, fit_whitening, shift_significance
from stillroom.defense.poison import KeyedPoison
from stillroom.defense.windows import MemoryWindows
from stillroom.errors import InputError

W, C, D = 8, 3, 10
CENTRES = 4 * np.random.default_rng(9).standard_normal((C, D))
SPREAD = np.diag(np.linspace(0.5, 2.0, D))
THEFT = SPREAD @ np.random.default_rng(8).choice([-0.5, 0.5], D)  # half a deviation in every direction


def samples(rng: np.random.Generator, count: int, shift: np.ndarray | float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    classes = rng.integers(C, size=count)
    return CENTRES[classes] + rng.standard_normal((count, D)) @ SPREAD + shift, classes


def queries(account: str, features: np.ndarray, classes: np.ndarray) -> Queries:
    return Queries(account, np.zeros((len(classes), 1, 1, 1), np.uint8), features, np.eye(C)[classes])


HELD, PREDICTED = samples(np.random.default_rng(0), 4000)
REFERENCE = fit_reference(*samples(np.random.default_rng(1), 6000), C)
WINDOWS = draw_windows(len(HELD), W, 1000, np.random.default_rng(2))
THRESHOLD = quantile_threshold(window_scores(REFERENCE, HELD, PREDICTED, WINDOWS), 0.01)
FEW = WINDOWS[::8]  # quicker, where rates do not matter


def detector(windows: np.ndarray = WINDOWS, **options: float) -> Linked:
    return Linked(ADD(REFERENCE, MemoryWindows(W)), HELD, PREDICTED, windows, **options)  # type: ignore[arg-type]


def ask(
    linked: Linked, rng: np.random.Generator, name: str, accounts: int, each: int, shift: np.ndarray | float = 0.0
) -> np.ndarray:
    """Let accounts ask one query each in turn, and return their scores [each, accounts]."""
    found = np.empty((each, accounts))
    for turn in range(each):
        for account in range(accounts):
            found[turn, account] = linked.watch(queries(f"{name}-{account}", *samples(rng, 1, shift)))[0]
    return found


def test_accounts_that_never_fill_a_window_are_recognised_by_what_they_share() -> None:
    linked, rng = detector(), np.random.default_rng(3)
    ask(linked, rng, "user", 100, 4)
    ask(linked, rng, "thief", 150, 4, THEFT)
    late = ask(linked, rng, "late-thief", 50, W - 1, THEFT)
    assert (late[3:] > THRESHOLD).mean() > 0.8
    assert (ask(linked, rng, "late-user", 100, W - 1) > THRESHOLD).mean() < 0.04


def test_without_linking_the_same_accounts_are_never_even_scored() -> None:
    rng = np.random.default_rng(3)
    add = ADD(REFERENCE, MemoryWindows(W))
    for account in range(20):
        assert np.isnan(add.watch(queries(f"thief-{account}", *samples(rng, W - 1, THEFT)))).all()


def test_the_score_is_that_of_add_while_newcomers_look_as_held_out_traffic_does() -> None:
    linked, add, rng = detector(), ADD(REFERENCE, MemoryWindows(W)), np.random.default_rng(4)
    for account in range(150):
        asked = queries(f"user-{account}", *samples(rng, W + 2))
        assert np.array_equal(linked.watch(asked), add.watch(asked), equal_nan=True)
    assert linked.significance < 3


def test_no_honest_account_is_linked_to_itself() -> None:
    linked, rng = detector(gate=-np.inf, refresh=16), np.random.default_rng(5)
    ask(linked, rng, "early", 100, W)  # fills the pool
    scores = ask(linked, rng, "user", 100, W)
    assert np.isfinite(scores).all()
    assert (scores > THRESHOLD).mean() < 0.04  # two tests of 1 % each, and a pool of the same users


def test_one_account_enters_the_pool_with_one_window_at_most() -> None:
    linked, rng = detector(FEW), np.random.default_rng(6)
    for _ in range(5):
        linked.watch(queries("flood", *samples(rng, 100, 10 * THEFT)))
    linked.watch(queries("other", *samples(rng, 3)))
    assert linked.state()["weights"][2] == W + 3
    assert np.isnan(linked.significance)  # far from warm


@settings(deadline=None, max_examples=8)
@given(cuts=st.lists(st.integers(1, 5), min_size=1, max_size=6))
def test_cutting_an_accounts_queries_into_requests_leaves_scores_and_pool_the_same(cuts: list[int]) -> None:
    features, classes = samples(np.random.default_rng(7), sum(cuts), THEFT)
    whole, parts = (detector(FEW, refresh=10**6, memory=10**9) for _ in range(2))
    expected = whole.watch(queries("a", features, classes))
    ends = np.cumsum(cuts)
    pieces = [slice(end - cut, end) for end, cut in zip(ends, cuts, strict=True)]
    found = np.concatenate([parts.watch(queries("a", features[p], classes[p])) for p in pieces])
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    for name, value in whole.state().items():
        np.testing.assert_allclose(parts.state()[name], value, rtol=1e-6, atol=1e-6)


def test_a_restored_pool_judges_as_the_one_that_was_stored() -> None:
    linked, rng = detector(FEW, refresh=1), np.random.default_rng(10)
    ask(linked, rng, "thief", 200, 4, THEFT)
    restarted = detector(FEW, refresh=1)
    restarted.restore(linked.state())
    asked = queries("new", *samples(rng, 5, THEFT))
    expected = linked.watch(asked)
    assert np.isfinite(expected).all()
    np.testing.assert_array_equal(restarted.watch(asked), expected)


def test_the_state_is_as_large_after_many_accounts_as_after_one() -> None:
    linked, rng = detector(FEW), np.random.default_rng(11)
    ask(linked, rng, "user", 1, 1)
    before = sum(value.nbytes for value in linked.state().values())
    ask(linked, rng, "user", 300, 2)
    assert sum(value.nbytes for value in linked.state().values()) == before


def test_a_feature_that_is_not_finite_is_refused_and_spoils_nothing() -> None:
    linked, rng = detector(FEW), np.random.default_rng(15)
    linked.watch(queries("user", *samples(rng, 2)))
    before = linked.state()
    features, classes = samples(rng, 2)
    features[1, 3] = np.nan
    with pytest.raises(InputError, match="not finite"):
        linked.watch(queries("broken", features, classes))
    assert all(np.array_equal(value, before[name]) for name, value in linked.state().items())
    with pytest.raises(InputError, match="not finite"):
        linked.restore({**before, "first": before["first"] * np.nan})


def test_threads_lose_no_query_of_the_pool() -> None:
    linked, rng = detector(FEW, warmup=4096), np.random.default_rng(12)
    asked = [queries(f"user-{a}", *samples(rng, 2)) for a in range(200)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(linked.watch, asked))
    assert linked.state()["weights"][2] == 400


def test_linked_accounts_get_random_answers_through_the_usual_defence() -> None:
    linked, rng = detector(), np.random.default_rng(13)
    defence = DetectAndPoison(linked, THRESHOLD, KeyedPoison(bytes(16)))
    altered = [
        defence.answer(queries(f"thief-{a}", *samples(rng, 4, 2 * THEFT))).altered for a in range(300)
    ]  # four queries of an account in one request
    assert not np.any(altered[:100])
    assert np.mean(altered[200:]) > 0.9


@given(st.integers(1, 12), st.integers(0, 99))
def test_fishers_map_is_symmetric_and_bounded(width: int, seed: int) -> None:
    factor = np.random.default_rng(seed).standard_normal((width, width))
    found = fisher_map(factor @ factor.T)
    np.testing.assert_allclose(found, found.T, atol=1e-9)
    assert np.linalg.eigvalsh(found).min() > 0
    assert np.linalg.eigvalsh(found).max() <= 2 + 1e-9


def test_the_pooled_test_is_standard_without_a_shift_and_grows_with_one() -> None:
    rng = np.random.default_rng(14)
    means = rng.standard_normal((2000, 32)) * np.sqrt(1 / 500 + 1 / 1000)
    found = np.array([shift_significance(mean, 500, 1000) for mean in means])
    assert abs(found.mean()) < 0.1
    assert abs(found.std() - 1) < 0.1
    assert shift_significance(means[0] + 0.3, 500, 1000) > 20


def test_whitened_held_out_features_have_mean_zero_in_every_class_and_unit_covariance() -> None:
    whitened = fit_whitening(HELD, PREDICTED, REFERENCE.mean)(HELD, PREDICTED)
    for c in range(C):
        assert np.abs(whitened[c == PREDICTED].mean(0)).max() < 1e-9
    np.testing.assert_allclose(np.cov(whitened.T, bias=True), np.eye(D), atol=2e-2)  # a ridge keeps it from one


def test_a_class_that_was_never_predicted_falls_back_to_the_reference() -> None:
    seen = PREDICTED != 2
    assert np.array_equal(fit_whitening(HELD[seen], PREDICTED[seen], REFERENCE.mean).mean[2], REFERENCE.mean[2])


def test_what_cannot_be_linked_is_said_in_one_line() -> None:
    add = ADD(REFERENCE, MemoryWindows(W))
    with pytest.raises(InputError, match="at least 100 of 8 queries"):
        Linked(add, HELD, PREDICTED, WINDOWS[:, :-1])
    with pytest.raises(InputError, match="too few"):
        Linked(add, HELD[:D], PREDICTED[:D], WINDOWS % D)
    with pytest.raises(InputError, match="warmup is 0"):
        Linked(add, HELD, PREDICTED, WINDOWS, warmup=0)
    with pytest.raises(InputError, match="not finite"):
        Linked(add, np.full_like(HELD, np.nan), PREDICTED, WINDOWS)
    with pytest.raises(InputError, match="all held-out features of a class are the same"):
        Linked(add, np.zeros_like(HELD), PREDICTED, WINDOWS)
    with pytest.raises(InputError, match="other features"):
        detector(FEW).restore({"first": np.zeros(3)})


def test_accounts_are_linked_in_a_process_without_torch() -> None:
    said = "import sys, stillroom.defense.linking; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", said], check=False).returncode == 0
