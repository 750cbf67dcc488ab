"""A process that asks until it is killed, and says on its standard output what was taken in."""

from __future__ import annotations

import sys
import threading

import numpy as np

from stillroom.defense.service import _sqlite, sqlite_store
from stillroom.defense.service.redis_store import RedisStore
from stillroom.defense.service.sqlite_store import SQLiteStore
from stillroom.defense.service.store import Decision, Limits, Store

SIZE, WIDTH = 8, 16


def open_store(where: str) -> Store:
    """Open Redis by its address, anything else as a file."""
    if where.startswith("unix:"):
        return RedisStore(where, size=SIZE, width=WIDTH)
    return SQLiteStore(where, size=SIZE, width=WIDTH, cache=5000)  # some windows are in memory, some are not


def ask(store: Store, name: str, said: threading.Lock) -> None:
    """Ask with ten accounts in turn; each counts its queries in class and features."""
    started = {f"{name}{number}": 0 for number in range(10)}
    for account in started:
        started[account] = store.append(account, np.zeros((1, WIDTH)), np.array([0])).total
        store.forget(account)
    step = 0
    while True:
        for account in started:
            store.admit(account, 1, Limits(1e9, 1000), 1.0)
            store.append(account, np.full((1, WIDTH), step), np.array([step]))
            store.record(account, score=float(step), poisoned=0, now=1.0)
            store.decide(Decision(account, 0.0, 1.0, 1.0, step, 0))
            with said:
                print(account, step, flush=True)
        step += 1


if __name__ == "__main__":
    _sqlite.LONG_LOG, sqlite_store.FLUSH_SECONDS = 100_000, 0.005  # many checkpoints within the test's time
    opened, lock = open_store(sys.argv[1]), threading.Lock()
    for worker in "ab":
        threading.Thread(target=ask, args=(opened, worker, lock), daemon=True).start()
    threading.Event().wait()
