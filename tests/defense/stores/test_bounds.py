"""What the stores hold is bounded, and a disk that is full costs nothing that was acknowledged."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillroom.defense.service import _sqlite
from stillroom.defense.service._buckets import TokenBuckets
from stillroom.defense.service._memory import HotWindow, HotWindows, Note
from stillroom.defense.service._sqlite import Database
from stillroom.defense.service.redis_store import RedisStore
from stillroom.defense.service.sqlite_store import SQLiteStore
from stillroom.defense.service.store import Limits
from stillroom.defense.windows import Window
from stillroom.errors import OutputError


def ask(store: SQLiteStore | RedisStore, account: str, *labels: int) -> Window:
    return store.append(account, np.ones((len(labels), 3)), np.array(labels))


def test_databases_hold_a_window_and_no_more(tmp_path: Path, empty_redis: str) -> None:
    import redis

    disk, shared = SQLiteStore(tmp_path / "a.db", size=4, width=3), RedisStore(empty_redis, size=4, width=3)
    for store in (disk, shared):
        ask(store, "bob", 1)
        for _ in range(5):
            ask(store, "eve", 1, 2, 3)
        ask(store, "eve", *range(9))
        store.close()
    database = Database(tmp_path / "a.db")
    assert database.one("SELECT count(*) FROM query") == (5,)
    database.close()
    with redis.from_url(empty_redis) as client:
        assert client.llen("stillroom:window:eve") == 4


def test_a_bucket_that_is_full_again_leaves_redis(empty_redis: str) -> None:
    import redis

    store = RedisStore(empty_redis, size=4, width=3)
    store.admit("eve", 6, Limits(60.0, 30), 1000.0)
    with redis.from_url(empty_redis) as client:
        assert 6000 < client.pttl("stillroom:bucket:eve") <= 7000
    store.close()


def test_buckets_that_are_full_again_leave_memory() -> None:
    buckets = TokenBuckets()
    for second in range(1000):
        assert buckets.take(f"account {second}", 10, Limits(60.0, 30), float(second)) == 0
    assert len(buckets) <= 12  # ten seconds' worth


@given(st.lists(st.tuples(st.sampled_from("abcde"), st.integers(1, 9)), max_size=30), st.integers(0, 4000))
def test_hot_windows_stay_within_their_bytes(puts: list[tuple[str, int]], most: int) -> None:
    hot = HotWindows(most)
    for account, length in puts:
        hot.put(account, HotWindow(1, Window(np.zeros((length, 8), np.float32), np.zeros(length, np.int64), length)))
        kept = [window for name in "abcde" if (window := hot.get(name)) is not None]
        assert hot.weight == sum(window.weight for window in kept) <= most
        assert len(hot) == len(kept)
    if puts and most >= 1000:
        assert hot.get(puts[-1][0]) is not None  # the last to come is the last to leave


def test_notes_add_up_in_order() -> None:
    note = Note(5.0, 5.0, queries=2).then(Note(4.0, 4.0, poisoned=1, score=3.0, highest=3.0))
    assert note.then(Note(6.0, 6.0, score=1.0, highest=1.0)) == Note(4.0, 6.0, 2, 1, 1.0, 3.0)


def test_a_full_disk_refuses_the_query_and_keeps_what_was_noted(tmp_path: Path) -> None:
    store = SQLiteStore(tmp_path / "a.db", size=4, width=3)
    ask(store, "eve", 1, 2)
    with store._db.transaction() as db:
        pages = db.execute("PRAGMA page_count").fetchone()[0]
        db.execute(f"PRAGMA max_page_count = {pages}")
    store.admit("eve", 3, Limits(), 1.0)
    got_in: list[str] = []

    def fill() -> None:
        for number in range(1000):
            ask(store, f"account {number}", number)
            got_in.append(f"account {number}")

    with pytest.raises(OutputError, match="full"):
        fill()
    with store._db.transaction() as db:
        db.execute("PRAGMA max_page_count = 100000")
    assert ask(store, f"account {len(got_in)}", 5).total == 1
    assert [ask(store, name, 5).total for name in got_in] == [2] * len(got_in)
    assert ask(store, "eve", 3).classes.tolist() == [1, 2, 3]
    found = store.account("eve")
    assert found is not None
    assert found.queries == 3
    store.close()


def test_what_is_noted_reaches_the_disk_within_a_second(tmp_path: Path) -> None:
    store, other = (SQLiteStore(tmp_path / "a.db", size=4, width=3) for _ in range(2))
    store.record("eve", score=2.5, poisoned=1, now=1.0)
    waiting = threading.Event()
    for _ in range(100):  # ends as soon as it is there
        if (found := other.account("eve")) is not None:
            break
        waiting.wait(0.05)
    assert found is not None
    assert found.score == 2.5
    store.close()
    other.close()


def test_carrying_the_log_over_is_no_change_by_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_sqlite, "LONG_LOG", 1)
    first, second = Database(tmp_path / "a.db"), Database(tmp_path / "a.db")
    with first.transaction() as db:
        db.execute("CREATE TABLE numbers(x)")
    log = tmp_path / "a.db-wal"
    assert log.stat().st_size > 0
    first.shorten_log()
    assert log.stat().st_size == 0
    with first.transaction() as db:
        assert not first.changed()
        db.execute("INSERT INTO numbers VALUES(1)")
    with second.transaction():
        assert second.changed()
    assert second.table("SELECT x FROM numbers") == [(1,)]
    first.close()
    second.close()


def test_stores_work_without_torch(tmp_path: Path) -> None:
    said = (
        "import sys, numpy; from stillroom.defense.service.sqlite_store import SQLiteStore; "
        "import stillroom.defense.service.redis_store; store = SQLiteStore(sys.argv[1], size=2, width=1); "
        "store.append('eve', numpy.ones((1, 1)), numpy.array([0])); store.close(); "
        "print([name for name in ('torch', 'redis', 'fastapi') if name in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", said, str(tmp_path / "a.db")], capture_output=True, text=True)
    assert run.stdout == "[]\n", run.stderr
