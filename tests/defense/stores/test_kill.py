"""What was acknowledged is there after ``kill -9``."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from defense.redis_server import redis_server
from defense.stores.asking import SIZE, WIDTH, open_store

ASKING = Path(__file__).with_name("asking.py")


def killed_under_load(where: str, acknowledged: int) -> dict[str, int]:
    """Kill a process after so many acknowledgements; return the last query acknowledged of each account."""
    process = subprocess.Popen([sys.executable, str(ASKING), where], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    lines = [process.stdout.readline() for _ in range(acknowledged)]
    process.kill()
    lines += [line for line in process.stdout if line.endswith("\n")]
    assert process.wait() == -9
    last: dict[str, int] = {}
    for line in lines:
        account, step = line.split()
        last[account] = int(step)
    return last


def check(where: str, last: dict[str, int]) -> None:
    store = open_store(where)
    for account, step in last.items():
        decisions = store.decisions(account=account, limit=1)
        window = store.append(account, np.full((1, WIDTH), -1.0), np.array([7]))
        asked = window.total - 1
        assert asked in (step + 1, step + 2)  # the one under way may have been taken in or not
        expected = np.arange(max(asked - SIZE + 1, 0), asked)
        np.testing.assert_array_equal(window.classes[:-1], expected)
        np.testing.assert_array_equal(window.features[:-1], np.repeat(expected[:, None], WIDTH, 1))
        assert decisions[0].asked >= step
    store.close()


def test_sqlite_keeps_every_acknowledged_query_of_a_killed_process(tmp_path: Path) -> None:
    for acknowledged in (25, 500, 1500):
        last = killed_under_load(str(tmp_path / "accounts.db"), acknowledged)
        assert len(last) >= 10
        check(str(tmp_path / "accounts.db"), last)


def test_redis_keeps_every_acknowledged_query_of_a_killed_client(empty_redis: str) -> None:
    check(empty_redis, killed_under_load(empty_redis, 800))


def test_redis_killed_itself_keeps_them_where_it_always_syncs() -> None:
    with tempfile.TemporaryDirectory() as folder:
        with redis_server(Path(folder), appendfsync="always") as (url, server):
            last = killed_under_load(url, 200)
            server.kill()
            server.wait()
        with redis_server(Path(folder)) as (url, _):
            check(url, last)
