"""The target counts, splits and reports what it is asked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stillroom.defense.attacks.collusion import Mixed, colluding, disposable
from stillroom.defense.attacks.target import BudgetSpent, Target
from stillroom.defense.contracts import Answers, Images, Observed, Queries, softmax
from stillroom.errors import InputError


def zeros(count: int) -> Images:
    return np.zeros((count, 1, 2, 2), np.uint8)


def observe(images: Images) -> Observed:
    logits = images.reshape(len(images), -1).astype(np.float64)
    return Observed(logits, logits)


class Third:
    """Poisons each account's third and later queries, and remembers its requests."""

    def __init__(self) -> None:
        self.known: dict[str, int] = {}
        self.requests: list[tuple[str, int]] = []

    def answer(self, queries: Queries) -> Answers:
        before = self.known.get(queries.account, 0)
        self.known[queries.account] = before + len(queries)
        self.requests.append((queries.account, len(queries)))
        number = before + 1 + np.arange(len(queries))
        return Answers(softmax(queries.logits), number >= 3, number.astype(np.float64))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=8), st.integers(1, 5), st.integers(1, 4), st.integers(1, 7))
def test_how_queries_are_cut_into_calls_changes_no_statistic(
    calls: list[int], count: int, block: int, request: int
) -> None:
    total = sum(calls)
    whole, parts = (
        Target(observe, Third(), budget=total, accounts=colluding(count, block=block), request=request)
        for _ in range(2)
    )
    whole.ask(zeros(total))
    for call in calls:
        parts.ask(zeros(call))
    for name in ("spent", "altered", "first_detected", "asked", "detected"):
        assert getattr(whole, name) == getattr(parts, name), name
    np.testing.assert_array_equal(whole.scores, parts.scores)
    assert sum(whole.asked.values()) == total == whole.spent
    assert set(whole.detected.values()) <= {3}


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 60), st.integers(1, 5), st.integers(1, 4), st.integers(1, 7))
def test_a_request_holds_consecutive_queries_of_one_account(total: int, count: int, block: int, request: int) -> None:
    defence, accounts = Third(), colluding(count, block=block)
    Target(observe, defence, budget=total, accounts=accounts, request=request).ask(zeros(total))
    made = [account for account, length in defence.requests for _ in range(length)]
    assert made == [accounts(query) for query in range(total)]
    assert max(length for _, length in defence.requests) <= request


def test_what_the_budget_does_not_cover_is_not_asked_at_all() -> None:
    target = Target(observe, Third(), budget=5)
    target.ask(zeros(3))
    with pytest.raises(BudgetSpent) as caught:
        target.ask(zeros(3))
    assert (caught.value.left, target.spent) == (2, 3)
    target.ask(zeros(2))
    assert target.spent == 5


def test_answers_belong_to_their_images_whoever_asks() -> None:
    images = np.random.default_rng(0).integers(0, 5, (20, 1, 2, 2), dtype=np.uint8)
    answers = Target(observe, Third(), budget=20, accounts=disposable(3)).ask(images)
    np.testing.assert_allclose(answers, softmax(observe(images).logits))


def test_a_service_of_labels_answers_in_one_hot_rows() -> None:
    images = np.random.default_rng(0).integers(0, 255, (20, 1, 2, 2), dtype=np.uint8)
    answers = Target(observe, Third(), budget=20, labels="hard").ask(images)
    np.testing.assert_array_equal(answers, np.eye(4)[observe(images).logits.argmax(1)])


def test_the_first_altered_answer_is_numbered_over_all_accounts() -> None:
    target = Target(observe, Third(), budget=20, accounts=colluding(2))
    target.ask(zeros(4))
    assert target.first_detected is None
    target.ask(zeros(4))
    assert target.first_detected == 5
    assert target.detected == {"thief-0": 3, "thief-1": 3}


@pytest.mark.parametrize("options", [{"budget": 0}, {"budget": 1, "request": 0}, {"budget": 1, "labels": "top"}])
def test_a_target_refuses_impossible_options(options: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        Target(observe, Third(), **options)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 12), max_size=8), st.sampled_from([0.0, 0.1, 0.25, 1 / 3, 0.5, 0.75, 0.9]))
def test_mixed_in_queries_have_their_share_and_come_in_order(calls: list[int], share: float) -> None:
    asked: list[int] = []

    def ask(images: Images) -> Any:
        asked.extend(images.ravel().tolist())
        return images.reshape(-1, 1).astype(np.float64)

    mixed = Mixed(ask, np.arange(100, 107, dtype=np.uint8).reshape(-1, 1, 1, 1), share)
    number = 0
    for call in calls:
        own = (np.arange(number, number + call) % 100).astype(np.uint8).reshape(-1, 1, 1, 1)
        assert mixed(own).ravel().tolist() == own.ravel().tolist()
        number += call
    honest = [value for value in asked if value >= 100]
    assert honest == [100 + i % 7 for i in range(len(honest))]
    assert [value for value in asked if value < 100] == [i % 100 for i in range(number)]
    for length in range(len(asked) + 1):
        assert sum(value >= 100 for value in asked[:length]) == int(np.floor(length * share))


def test_what_is_left_for_the_attack_counts_the_honest_queries_in_between() -> None:
    target = Target(observe, Third(), budget=7)
    mixed = Mixed(target.ask, np.zeros((3, 1, 2, 2), np.uint8), 0.5)
    with pytest.raises(BudgetSpent) as caught:
        mixed(zeros(10))
    assert caught.value.left == 4
    assert len(mixed(zeros(4))) == 4
    assert target.spent == 7


@pytest.mark.parametrize(
    "make",
    [
        lambda: colluding(0),
        lambda: colluding(2, block=0),
        lambda: disposable(0),
        lambda: Mixed(lambda images: np.ones((1, 1)), zeros(1), 1.0),
        lambda: Mixed(lambda images: np.ones((1, 1)), zeros(0), 0.5),
        lambda: Mixed(lambda images: np.ones((1, 1)), zeros(1).astype(np.float32), 0.5),
    ],
)
def test_impossible_disguises_are_refused(make: Callable[[], object]) -> None:
    with pytest.raises(InputError):
        make()
