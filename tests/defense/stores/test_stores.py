"""Both databases keep what the service's contract says, and the same."""

from __future__ import annotations

import math
import sqlite3
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from defense.redis_server import redis_server
from stillroom.defense.service.redis_store import RedisStore
from stillroom.defense.service.sqlite_store import SQLiteStore
from stillroom.defense.service.store import Account, Decision, Key, Limits, Order, Store
from stillroom.defense.windows import MemoryWindows
from stillroom.errors import FailureError, InputError

Open = Callable[..., Store]
LIMITS = Limits(per_minute=60.0, burst=30)  # one image a second


@pytest.fixture(params=["sqlite", "redis"])
def open_store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Open]:
    """Opens the same database again and again."""
    opened: list[Store] = []

    def of(**changes: Any) -> Store:
        options = {"size": 4, "width": 3, "identity": "guard", **changes}
        if request.param == "sqlite":
            opened.append(SQLiteStore(tmp_path / "accounts.db", **options))
        else:
            opened.append(RedisStore(request.getfixturevalue("redis_url"), **options))
        return opened[-1]

    if request.param == "redis":
        request.getfixturevalue("empty_redis")
    yield of
    for store in opened:
        store.close()


@pytest.fixture
def store(open_store: Open) -> Store:
    return open_store()


def queries(*labels: int) -> tuple[Any, Any]:
    """Queries that can be told apart by class and features."""
    classes = np.array(labels)
    return np.stack([classes, classes + 0.5, -classes], 1).astype(np.float32), classes


def last(store: Store, account: str) -> list[int]:
    """The classes of the window, with one query more."""
    return store.append(account, *queries(99)).classes.tolist()


# -- windows ---------------------------------------------------------------------------------------------------------


def test_a_window_holds_the_last_queries_and_counts_all(store: Store) -> None:
    for label in range(6):
        window = store.append("eve", *queries(label))
    features, classes = queries(2, 3, 4, 5)
    np.testing.assert_array_equal(window.features, features)
    np.testing.assert_array_equal(window.classes, classes)
    assert window.features.dtype == np.float32
    assert window.total == 6


def test_a_batch_larger_than_the_window_comes_back_whole(store: Store) -> None:
    store.append("eve", *queries(7))
    assert store.append("eve", *queries(*range(6))).classes.tolist() == [7, 0, 1, 2, 3, 4, 5]
    assert last(store, "eve") == [3, 4, 5, 99]


def test_accounts_are_never_mixed(store: Store) -> None:
    store.append("eve", *queries(1))
    store.append("eve:1", *queries(2))
    store.append("Eve", *queries(3))
    assert [last(store, name) for name in ("eve", "eve:1", "Eve")] == [[1, 99], [2, 99], [3, 99]]


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["append", "append", "append", "forget", "reopen"]),
        st.sampled_from(["a", "b", "é:{}"]),
        st.lists(st.integers(0, 50), min_size=1, max_size=9),
    ),
    max_size=25,
)


@settings(max_examples=25, deadline=None)
@given(size=st.integers(1, 5), cache=st.sampled_from([0, 700, 10**6]), steps=STEPS)
def test_memory_sqlite_and_redis_hold_the_same_windows(redis_url: str, size: int, cache: int, steps: Any) -> None:
    import redis

    with tempfile.TemporaryDirectory() as folder, redis.from_url(redis_url) as client:
        client.flushall()
        options = {"size": size, "width": 3, "identity": "same"}
        memory, shared = MemoryWindows(size), RedisStore(redis_url, **options)
        disk = SQLiteStore(Path(folder) / "a.db", cache=cache, **options)
        for step, account, labels in steps:
            if step == "reopen":
                disk.close()
                disk = SQLiteStore(Path(folder) / "a.db", cache=cache, **options)
            elif step == "forget":
                for windows in (memory, disk, shared):
                    windows.forget(account)
            else:
                expected, *found = (windows.append(account, *queries(*labels)) for windows in (memory, disk, shared))
                for window in found:
                    np.testing.assert_array_equal(window.features, expected.features)
                    np.testing.assert_array_equal(window.classes, expected.classes)
                    assert window.total == expected.total
        disk.close()
        shared.close()


def test_two_openings_of_one_database_are_one_window(open_store: Open) -> None:
    """Two replicas on one Redis; with SQLite, two processes of one machine."""
    first, second = open_store(), open_store()
    for label in range(8):
        window = (first, second)[label % 2].append("eve", *queries(label))
    assert window.classes.tolist() == [4, 5, 6, 7]
    assert window.total == 8
    second.forget("eve")
    assert last(first, "eve") == [99]


def test_threads_lose_no_query(open_store: Open) -> None:
    stores = open_store(size=400), open_store(size=400)

    def ask(worker: int) -> None:
        for step in range(40):
            stores[worker % 2].append("all", *queries(100 * worker + step))

    workers = [threading.Thread(target=ask, args=(worker,)) for worker in range(4)]
    for thread in workers:
        thread.start()
    for thread in workers:
        thread.join()
    classes = stores[0].append("all", *queries(9999)).classes
    assert sorted(classes.tolist()) == sorted([*(100 * w + s for w in range(4) for s in range(40)), 9999])
    for worker in range(4):  # each thread's own in order
        own = classes[(classes // 100 == worker) & (classes < 9999)]
        assert own.tolist() == sorted(own.tolist())


@pytest.mark.parametrize(
    ("features", "classes", "said"),
    [
        (np.zeros((1, 2)), [0], "not the store's"),
        (np.zeros((2, 3)), [0], "not the store's"),
        (np.zeros((0, 3)), [], "not the store's"),
        (np.full((1, 3), np.nan), [0], "not finite"),
        (np.full((1, 3), 1e39), [0], "not finite"),
        (np.zeros((1, 3)), [-1], "negative"),
    ],
)
@pytest.mark.filterwarnings("ignore:overflow")
def test_queries_that_cannot_be_are_refused_and_not_kept(
    store: Store, features: Any, classes: list[int], said: str
) -> None:
    with pytest.raises(InputError, match=said):
        store.append("eve", features, np.array(classes, np.int64))
    assert last(store, "eve") == [99]


# -- limits ----------------------------------------------------------------------------------------------------------


def test_a_bucket_empties_and_refills(store: Store) -> None:
    assert store.admit("eve", 30, LIMITS, 1000.0).retry_after == 0
    assert store.admit("eve", 5, LIMITS, 1000.0).retry_after == pytest.approx(5)
    assert store.admit("eve", 5, LIMITS, 1004.0).retry_after == pytest.approx(1)
    assert store.admit("eve", 5, LIMITS, 1005.0).retry_after == 0
    assert store.admit("bob", 30, LIMITS, 1005.0).retry_after == 0
    found = store.account("eve")
    assert found is not None
    assert found.queries == 35


def test_a_request_larger_than_the_bucket_never_fits(store: Store) -> None:
    assert store.admit("eve", 31, LIMITS, 1000.0).retry_after == math.inf
    assert store.admit("eve", 30, LIMITS, 1000.0).retry_after == 0


def test_a_clock_that_is_set_back_locks_nobody_out(store: Store) -> None:
    store.admit("eve", 30, LIMITS, 9000.0)
    assert store.admit("eve", 1, LIMITS, 1000.0).retry_after == pytest.approx(1)


@settings(max_examples=20, deadline=None)
@given(steps=st.lists(st.tuples(st.integers(1, 35), st.floats(0, 20)), max_size=20), per_minute=st.floats(1, 5000))
def test_both_databases_admit_the_same(redis_url: str, steps: Any, per_minute: float) -> None:
    import redis

    with tempfile.TemporaryDirectory() as folder, redis.from_url(redis_url) as client:
        client.flushall()
        disk, shared = SQLiteStore(Path(folder) / "a.db", size=4, width=3), RedisStore(redis_url, size=4, width=3)
        now, limits, admitted = 1e9, Limits(per_minute, 30), 0
        for images, passed in steps:
            now += passed
            one, other = disk.admit("eve", images, limits, now), shared.admit("eve", images, limits, now)
            assert one == other
            admitted += images * (one.retry_after == 0)
        assert admitted <= 30 + per_minute / 60 * (now - 1e9) + 1e-3
        disk.close()
        shared.close()


def test_two_replicas_together_admit_what_one_would(empty_redis: str) -> None:
    replicas = [RedisStore(empty_redis, size=4, width=3) for _ in range(2)]
    admitted = [replicas[step % 2].admit("eve", 1, LIMITS, 1000.0).retry_after == 0 for step in range(40)]
    assert admitted == [True] * 30 + [False] * 10
    for replica in replicas:
        replica.close()


@pytest.mark.parametrize("limits", [Limits(0.0, 5), Limits(math.inf, 5), Limits(60.0, 0)])
def test_limits_that_make_no_sense_are_refused(store: Store, limits: Limits) -> None:
    with pytest.raises(InputError, match="must be positive"):
        store.admit("eve", 1, limits, 0.0)
    with pytest.raises(InputError, match="cannot be charged"):
        store.admit("eve", 0, LIMITS, 0.0)


# -- accounts --------------------------------------------------------------------------------------------------------


def test_an_account_that_never_came_is_unknown(store: Store) -> None:
    assert store.account("eve") is None
    store.forget("eve")
    assert store.account("eve") is None
    assert store.counts() == {"watched": 0, "trusted": 0, "banned": 0, "decisions": 0}


def test_scores_and_poisoned_answers_add_up(store: Store) -> None:
    store.admit("eve", 3, LIMITS, 1000.0)
    store.record("eve", score=None, poisoned=0, now=1000.0)
    found = store.account("eve")
    assert found is not None
    assert (found.score, found.highest) == (None, None)
    for score, poisoned in ((5.25, 1), (9.125, 2), (7.1, 4), (math.nan, 0), (None, 0)):
        store.record("eve", score=score, poisoned=poisoned, now=1001.0)
    found = store.account("eve")
    assert found is not None
    assert (found.score, found.highest, found.poisoned, found.queries) == (7.1, 9.125, 7, 3)
    assert (found.first_seen, found.last_seen, found.status) == (1000.0, 1001.0, "watched")


def test_accounts_are_listed_by_score_queries_or_time(store: Store) -> None:
    for number, (name, score) in enumerate({"a": 2.0, "b": None, "c": 10.5, "d": 2.0}.items()):
        store.admit(name, 10 - number, LIMITS, 1000.0 + number)
        store.record(name, score=score, poisoned=0, now=1000.0 + number)
    names = [account.name for account in store.accounts()]
    assert names == ["c", "d", "a", "b"]
    assert [account.name for account in store.accounts(limit=2, offset=1)] == ["d", "a"]
    assert [account.name for account in store.accounts(order="queries")] == ["a", "b", "c", "d"]
    assert [account.name for account in store.accounts(order="last_seen")] == ["d", "c", "b", "a"]
    assert store.accounts(limit=0) == []
    assert store.accounts(offset=9) == []
    wrong: Any = "scores"
    with pytest.raises(InputError, match="did you mean 'score'"):
        store.accounts(order=wrong)


EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["admit", "record", "append", "forget", "watched", "trusted", "banned"]),
        st.sampled_from(["a", "b", "é"]),
        st.integers(1, 40),
        st.none() | st.floats(-1e300, 1e300) | st.just(math.inf),
    ),
    max_size=25,
)


@settings(max_examples=25, deadline=None)
@given(events=EVENTS)
def test_both_databases_show_an_administrator_the_same(redis_url: str, events: Any) -> None:
    import redis

    with tempfile.TemporaryDirectory() as folder, redis.from_url(redis_url) as client:
        client.flushall()
        stores: list[Store] = [
            SQLiteStore(Path(folder) / "a.db", size=4, width=3),
            RedisStore(redis_url, size=4, width=3),
        ]
        for now, (event, account, number, score) in enumerate(events):
            for store in stores:
                if event == "admit":
                    store.admit(account, number, LIMITS, float(now))
                elif event == "record":
                    store.record(account, score=score, poisoned=number, now=float(now))
                elif event == "append":
                    store.append(account, *queries(number))
                elif event == "forget":
                    store.forget(account)
                else:
                    store.set_status(account, event)
        assert stores[0].counts() == stores[1].counts()
        orders: tuple[Order, ...] = ("score", "queries")
        for order in orders:
            shown = [[untimed(account) for account in store.accounts(order=order)] for store in stores]
            assert shown[0] == shown[1]
            assert shown[0] == [untimed(stores[0].account(account.name)) for account in shown[0]]
        for store in stores:
            store.close()


def untimed(account: Account | None) -> Account:
    """Without the times: those of accounts that only have a status are the clock's."""
    assert account is not None
    return replace(account, first_seen=0.0, last_seen=0.0)


def test_a_banned_account_is_not_charged_and_a_trusted_one_is(store: Store) -> None:
    store.set_status("eve", "banned")
    store.set_status("bob", "trusted")
    assert store.admit("eve", 31, LIMITS, 1000.0).status == "banned"
    assert store.admit("bob", 3, LIMITS, 1000.0).status == "trusted"
    assert {a.name: (a.status, a.queries) for a in store.accounts()} == {"eve": ("banned", 0), "bob": ("trusted", 3)}
    assert store.counts() == {"watched": 0, "trusted": 1, "banned": 1, "decisions": 0}
    store.set_status("eve", "trusted")
    assert store.counts() == {"watched": 0, "trusted": 2, "banned": 0, "decisions": 0}
    wrong: Any = "ban"
    with pytest.raises(InputError, match="did you mean 'banned'"):
        store.set_status("eve", wrong)


def test_watching_an_account_again_forgets_its_window_and_scores_only(store: Store) -> None:
    store.admit("eve", 2, LIMITS, 1000.0)
    store.append("eve", *queries(1, 2))
    store.record("eve", score=50.0, poisoned=2, now=1000.0)
    store.set_status("eve", "banned")
    before = store.account("eve")
    assert before is not None
    assert before.score == 50.0
    store.set_status("eve", "watched")
    after = store.account("eve")
    assert after is not None
    assert (after.status, after.score, after.highest) == ("watched", None, None)
    assert (after.queries, after.poisoned) == (2, 2)
    assert last(store, "eve") == [99]
    assert store.append("eve", *queries(1)).total == 2


def test_what_an_administrator_did_is_there_after_reopening(open_store: Open) -> None:
    store = open_store()
    decision = Decision("eve", 5.0, 12.25, 11.0, 40, 3, {"cat": 2}, {"cat": 1.5})
    store.decide(decision)
    store.set_status("eve", "banned")
    store.set_setting("threshold", "12.5")
    store.add_key(Key("abc", b"\x00\xff digest", "eve", 7.25))
    store.record("eve", score=3.0, poisoned=1, now=1.0)
    store.close()
    again = open_store()
    assert again.decisions() == [decision]
    assert again.setting("threshold") == "12.5"
    assert again.setting("other") is None
    assert again.find_key("abc") == Key("abc", b"\x00\xff digest", "eve", 7.25)
    found = again.account("eve")
    assert found is not None
    assert (found.status, found.score) == ("banned", 3.0)


def test_decisions_come_newest_first_and_the_oldest_of_an_account_leave(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("sqlite_store", "redis_store"):
        monkeypatch.setattr(f"stillroom.defense.service.{module}.KEPT_DECISIONS", 3)
    store.decide(Decision("bob", 0.0, 1.0, 1.0, 1, 1))
    for number in range(5):
        store.decide(Decision("eve", float(number), 1.0, 1.0, number, 1))
    assert [decision.asked for decision in store.decisions(account="eve")] == [4, 3, 2]
    assert [decision.asked for decision in store.decisions(account="eve", limit=1, offset=1)] == [3]
    assert store.decisions()[0].asked == 4
    assert store.decisions()[-1].account == "bob"
    assert len(store.decisions(account="bob")) == 1
    assert store.counts()["decisions"] == 6


def test_keys_are_found_listed_and_removed(store: Store) -> None:
    first, second = Key("k1", b"1", "eve", 1.0), Key("k2", b"2", "eve", 2.0)
    store.add_key(second)
    store.add_key(first)
    store.add_key(Key("k3", b"3", "bob", 3.0))
    with pytest.raises(InputError, match="already"):
        store.add_key(Key("k1", b"other", "mallory", 1.0))
    assert store.find_key("k1") == first
    assert store.keys("eve") == [first, second]
    assert store.remove_key("k1")
    assert not store.remove_key("k1")
    assert store.find_key("k1") is None
    assert store.keys("eve") == [second]
    assert store.keys("mallory") == []


# -- opening ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("change", [{"size": 5}, {"width": 2}, {"identity": "another"}])
def test_a_database_of_another_guard_is_refused_in_one_line(open_store: Open, change: dict[str, Any]) -> None:
    open_store()
    with pytest.raises(InputError, match="give each guard a database of its own") as caught:
        open_store(**change)
    assert "\n" not in str(caught.value)


def test_windows_without_room_are_refused(open_store: Open) -> None:
    with pytest.raises(InputError, match="makes no sense"):
        open_store(size=0)


def test_a_file_that_is_no_database_of_accounts_is_refused(tmp_path: Path) -> None:
    text, other, folder = tmp_path / "text", tmp_path / "other", tmp_path / "missing" / "a.db"
    text.write_text("hello, this is no database" * 100)
    with sqlite3.connect(other) as connection:
        connection.execute("CREATE TABLE something(x)")
    connection.close()
    for path, said in ((text, "not a database"), (other, "no such table"), (folder, "No such file")):
        with pytest.raises(InputError, match=said):
            SQLiteStore(path, size=4, width=3)
    assert text.read_text().startswith("hello")


def test_a_database_is_for_its_owner_alone(tmp_path: Path) -> None:
    store = SQLiteStore(tmp_path / "a.db", size=4, width=3)
    store.append("eve", *queries(1))
    assert {path.stat().st_mode & 0o077 for path in tmp_path.iterdir()} == {0}
    store.close()
    store.close()
    with pytest.raises(FailureError, match="closed"):
        store.append("eve", *queries(1))


def test_a_redis_that_is_not_there_is_named_without_its_password(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot use Redis at .*none\.sock") as caught:
        RedisStore(f"unix://:hush@{tmp_path}/none.sock", size=4, width=3)
    assert "hush" not in str(caught.value)
    with pytest.raises(InputError, match="address of Redis"):
        RedisStore("http://localhost", size=4, width=3)


def test_a_redis_that_would_forget_is_warned_of(empty_redis: str, caplog: pytest.LogCaptureFixture) -> None:
    RedisStore(empty_redis, size=4, width=3).close()
    assert not caplog.records
    with tempfile.TemporaryDirectory() as folder, redis_server(Path(folder), appendonly="no") as (url, _):
        RedisStore(url, size=4, width=3).close()
    assert "appendonly" in caplog.text
