"""What 100,000 accounts cost: memory of the process, and time of each step a request takes in the store.

    python benchmarks/accounts.py
    redis-server --port 0 --unixsocket /run/redis.sock --save '' --appendonly yes &
    python benchmarks/accounts.py --redis unix:///run/redis.sock

Every account first fills its window, then single queries come in: to accounts drawn from all (mostly silent for long,
so their windows are read back), to 1,000 busy ones, and from several threads at once. The database must be new.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from stillroom.defense.service.redis_store import RedisStore
from stillroom.defense.service.sqlite_store import SQLiteStore
from stillroom.defense.service.store import Limits, Store

LIMITS = Limits(per_minute=1e6, burst=10_000)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--redis", help="address of an empty Redis; SQLite when not given")
    parser.add_argument("--folder", type=Path, help="where the SQLite file is made; a temporary folder when not given")
    parser.add_argument("--accounts", type=int, default=100_000)
    parser.add_argument("--window", type=int, default=16)
    parser.add_argument("--features", type=int, default=64)
    parser.add_argument("--queries", type=int, default=20_000, help="timed of each kind")
    parser.add_argument("--threads", type=int, default=4)
    arguments = parser.parse_args()
    print(f"{'before':34}VmHWM {peak():6.1f} MB")
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        file = Path(folder) / "accounts.db"
        size, width = arguments.window, arguments.features
        if arguments.redis:
            store: Store = RedisStore(arguments.redis, size=size, width=width, identity="benchmark")
        else:
            store = SQLiteStore(file, size=size, width=width, identity="benchmark")
        measure(store, arguments)
        print(f"{'end':34}VmHWM {peak():6.1f} MB")
        store.close()
        if not arguments.redis:
            print(f"{'database':34}{file.stat().st_size / 2**20:12.1f} MB")


def measure(store: Store, arguments: argparse.Namespace) -> None:
    rng = np.random.default_rng(0)
    names = [f"account-{number:06}" for number in range(arguments.accounts)]
    full = rng.standard_normal((arguments.window, arguments.features), np.float32)
    classes = rng.integers(0, 10, arguments.window)

    def request(name: str) -> None:
        store.admit(name, 1, LIMITS, time.time())
        store.append(name, full[:1], classes[:1])
        store.record(name, score=7.5, poisoned=0, now=time.time())

    def append(name: str) -> None:
        store.append(name, full[:1], classes[:1])

    timed("fill, a window at once", lambda name: store.append(name, full, classes), names)
    busy = names[:1000]
    for title, step, drawn in (
        ("append, any account", append, names),
        ("append, busy accounts", append, busy),
        ("admit + append + record, any", request, names),
        ("admit + append + record, busy", request, busy),
    ):
        timed(title, step, random.Random(1).choices(drawn, k=arguments.queries))
    start = time.perf_counter()
    workers = [
        threading.Thread(target=lambda seed: [*map(request, random.Random(seed).choices(names, k=5000))], args=(seed,))
        for seed in range(arguments.threads)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    rate = 5000 * arguments.threads / (time.perf_counter() - start)
    print(f"{f'the same, any, {arguments.threads} threads':34}{rate:8.0f} a second")


def timed(title: str, step: Callable[[str], object], names: list[str]) -> None:
    times = np.empty(len(names))
    for position, name in enumerate(names):
        start = time.perf_counter()
        step(name)
        times[position] = time.perf_counter() - start
    p50, p99, p999 = np.percentile(times, [50, 99, 99.9]) * 1e6
    print(
        f"{title:34}{1 / times.mean():8.0f} a second, p50 {p50:6.0f}, p99 {p99:6.0f}, p99.9 {p999:6.0f} µs, "
        f"VmHWM {peak():6.1f} MB"
    )


def peak() -> float:
    """Peak resident memory of this process, in megabytes (2**20 bytes); Linux."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


if __name__ == "__main__":
    main()
