"""Replicas that share a Redis decide as one process would."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest

from defense.redis_server import redis_server
from stillroom.defense.add import fit_reference
from stillroom.defense.contracts import Queries
from stillroom.defense.dadd import ADD, DetectAndPoison
from stillroom.defense.poison import KeyedPoison
from stillroom.defense.service.redis_store import RedisStore
from stillroom.defense.service.sqlite_store import SQLiteStore
from stillroom.defense.service.store import Limits, Store
from stillroom.defense.windows import MemoryWindows, Windows
from stillroom.errors import FailureError

W, CLASSES, WIDTH = 8, 3, 5
RNG = np.random.default_rng(0)
CENTRES = 4 * RNG.standard_normal((CLASSES, WIDTH))
LABELS = RNG.integers(0, CLASSES, 300)
REFERENCE = fit_reference(CENTRES[LABELS] + RNG.standard_normal((300, WIDTH)), LABELS, CLASSES)


def requests() -> list[Queries]:
    """Requests of an honest account and of a thief, mixed."""
    rng = np.random.default_rng(1)
    made = []
    for step in range(40):
        count, thief = int(rng.integers(1, 4)), step % 2 == 1
        labels = rng.integers(0, CLASSES, count)
        features = (CENTRES[labels] * (not thief) + rng.standard_normal((count, WIDTH))).astype(np.float32)
        images = rng.integers(0, 256, (count, 1, 4, 4), np.uint8)
        made.append(Queries("thief" if thief else "honest", images, features, np.eye(CLASSES)[labels]))
    return made


def defence(windows: Windows) -> DetectAndPoison:
    return DetectAndPoison(ADD(REFERENCE, windows), 9.0, KeyedPoison(b"shared by all replicas"))


def test_two_replicas_on_one_redis_and_two_openings_of_a_file_decide_as_one(empty_redis: str, tmp_path: Path) -> None:
    one = defence(MemoryWindows(W))
    expected = [one.answer(queries) for queries in requests()]
    flagged = np.concatenate([answers.altered for answers in expected])
    assert 0 < flagged.sum() < len(flagged)  # else nothing is compared
    shared: list[list[Store]] = [
        [RedisStore(empty_redis, size=W, width=WIDTH) for _ in range(2)],
        [SQLiteStore(tmp_path / "a.db", size=W, width=WIDTH) for _ in range(2)],
    ]
    for stores in shared:
        replicas = [defence(store) for store in stores]
        for step, queries in enumerate(requests()):
            found = replicas[(step // 3) % 2].answer(queries)
            np.testing.assert_array_equal(found.altered, expected[step].altered)
            np.testing.assert_array_equal(found.scores, expected[step].scores)
            np.testing.assert_array_equal(found.probabilities, expected[step].probabilities)
        for store in stores:
            store.close()


def test_a_redis_that_went_away_is_said_in_one_line_and_found_again() -> None:
    with tempfile.TemporaryDirectory() as folder:
        with redis_server(Path(folder), appendfsync="always") as (url, server):
            store = RedisStore(url, size=W, width=WIDTH)
            queries = np.ones((1, WIDTH), np.float32), np.array([1])
            store.append("eve", *queries)
            server.kill()
            server.wait()
            for ask in (
                lambda: store.append("eve", *queries),
                lambda: store.admit("eve", 1, Limits(), 1.0),
                lambda: store.find_key("k"),
                lambda: store.accounts(),
                lambda: store.counts(),
            ):
                with pytest.raises(FailureError, match=r"Redis at .* failed") as caught:
                    ask()
                assert "\n" not in str(caught.value)
        with redis_server(Path(folder)):
            assert store.append("eve", *queries).total == 2
            store.close()
