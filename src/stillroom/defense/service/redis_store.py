"""Accounts in Redis, for several replicas of a service."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stillroom.defense.contracts import Ints
from stillroom.defense.service import _redis_scripts as scripts
from stillroom.defense.service._buckets import check_limits
from stillroom.defense.service._kept import (
    FORMAT,
    KEPT_DECISIONS,
    QueryFormat,
    check_order,
    check_status,
    decision_from_json,
    decision_to_json,
    require_same_guard,
)
from stillroom.defense.service.store import Account, Admission, Decision, Key, Limits, Order, Status
from stillroom.defense.windows import Window, extended
from stillroom.errors import FailureError, InputError, MissingExtraError

__all__ = ["RedisStore"]

logger = logging.getLogger(__name__)

TIMEOUT = 5.0  # seconds Redis may take to answer
KEPT_IN_ALL = 10_000  # decisions listed over all accounts
PREFIX = "stillroom:"


class RedisStore:
    """Accounts in Redis: replicas that share one decide as a single process would.

    Windows are appended to, and buckets charged, by scripts that Redis runs one at a time. What ``append`` took in has
    left this process when it returns, so killing the process loses nothing. What a crash of *Redis* or of its machine
    loses is Redis' own bound: with ``appendonly yes`` and ``appendfsync always`` nothing, with ``everysec`` up to about
    two seconds (a write waits while the one before is synced), without ``appendonly`` all since the last snapshot,
    which is logged as a warning when the store opens. One Redis or a Sentinel's primary, not a cluster.

    Times are those the replicas give: a replica whose clock is ahead by some seconds sees buckets fuller by as much.

    Args:
        url: ``redis://host:port/database``, ``rediss://...`` or ``unix:///path``. One guard has one database.
        size: W, queries a window holds.
        width: Features of a query.
        identity: Names the guard, so that a database made for another one is refused.

    Raises:
        MissingExtraError: The package redis is absent.
        InputError: The address is wrong, nobody answers there, or the database was made for another guard.
    """

    local = False

    def __init__(self, url: str, *, size: int, width: int, identity: str = "") -> None:
        try:
            import redis
        except ImportError as error:
            raise MissingExtraError("redis", "serve") from error
        self.size, self.width, self.identity = size, width, identity
        self._form = QueryFormat(size, width)
        self._error = redis.RedisError
        # Nothing is tried twice: a request may have been carried out although its answer was lost.
        retry = redis.retry.Retry(redis.backoff.NoBackoff(), 0)
        try:
            self._redis: Any = redis.from_url(
                url, socket_timeout=TIMEOUT, socket_connect_timeout=TIMEOUT, retry=retry, decode_responses=False
            )
        except ValueError as error:
            raise InputError(f"the address of Redis is wrong: {error}") from error
        about = self._redis.connection_pool.connection_kwargs
        self._where = about.get("path") or f"{about.get('host', 'localhost')}:{about.get('port', 6379)}"
        named = {name: self._redis.register_script(getattr(scripts, name)) for name in scripts.__all__}
        self._append, self._admit, self._record = named["APPEND"], named["ADMIT"], named["RECORD"]
        self._forget, self._set_status, self._add_key = named["FORGET"], named["SET_STATUS"], named["ADD_KEY"]
        try:
            self._prepare()
        except self._error as error:
            raise InputError(f"cannot use Redis at {self._where}: {error}") from error

    def _prepare(self) -> None:
        meta = {"format": FORMAT, "size": self.size, "width": self.width, "identity": self.identity}
        with self._redis.pipeline() as together:
            for name, value in meta.items():
                together.hsetnx(f"{PREFIX}meta", name, value)
            together.hgetall(f"{PREFIX}meta")
            found = {name.decode(): value.decode() for name, value in together.execute()[-1].items()}
        require_same_guard(f"Redis at {self._where}", self._form, self.identity, found)
        if not self._redis.info("persistence").get("aof_enabled"):
            logger.warning("Redis at %s runs without appendonly: if it crashes, accounts are lost", self._where)

    @contextmanager
    def _asking(self) -> Iterator[None]:
        try:
            yield
        except self._error as error:
            raise FailureError(f"Redis at {self._where} failed: {error}") from error

    def _of(self, account: str) -> list[str]:
        parts = ("account", "window", "bucket")
        return [f"{PREFIX}{part}:{account}" for part in parts] + [
            f"{PREFIX}by:{order}" for order in ("score", "queries", "last_seen")
        ]

    # -- queries, limits, scores -------------------------------------------------------------------------------------

    def append(self, account: str, features: NDArray[np.floating], classes: Ints) -> Window:
        """Take in consecutive queries and return them with those before; with Redis when it returns.

        Shapes:
            features: [n, d]. classes: [n], predicted.

        Raises:
            InputError: Shapes do not fit, or a feature is not finite.
            FailureError: Redis did not answer; it may or may not have the queries.
        """
        kept, labels = self._form.check(features, classes)
        rows = self._form.rows(kept[-self.size :], labels[-self.size :])
        said: list[Any] = [account, repr(time.time()), self.size, len(labels), *rows]
        with self._asking():
            total, before = self._append(self._of(account), said)
        return extended(self._form.window(before, total - len(labels)), kept, labels, self.size)

    def forget(self, account: str) -> None:
        """Drop an account's window and scores; its status, keys and decisions stay."""
        with self._asking():
            self._forget(self._of(account), [account, repr(time.time())])

    def admit(self, account: str, images: int, limits: Limits, now: float) -> Admission:
        """Charge an account for a request of so many images, unless it is banned or its bucket is too empty.

        Its ``queries`` count what was admitted. A request larger than the bucket waits for ever (``inf``).

        Raises:
            InputError: The limits or the number of images make no sense.
        """
        check_limits(images, limits)
        charged: list[Any] = [account, repr(float(now)), images, repr(limits.per_minute / 60), limits.burst]
        with self._asking():
            status, wait = self._admit(self._of(account), charged)
        return Admission(status.decode(), float(wait))

    def record(self, account: str, *, score: float | None, poisoned: int, now: float) -> None:
        """Note the latest score (None or NaN: none was due, the one before stays) and the answers poisoned."""
        latest = "" if score is None or math.isnan(score) else repr(float(score))
        with self._asking():
            self._record(self._of(account), [account, repr(float(now)), latest, poisoned])

    # -- what an administrator sees and changes ----------------------------------------------------------------------

    def decide(self, decision: Decision) -> None:
        """Write down a flagged query; the last 1000 of each account and 10,000 of all are kept."""
        written = decision_to_json(decision)
        with self._asking(), self._redis.pipeline() as together:
            for name, kept in ((f"decisions:{decision.account}", KEPT_DECISIONS), ("decisions", KEPT_IN_ALL)):
                together.lpush(PREFIX + name, written)
                together.ltrim(PREFIX + name, 0, kept - 1)
            together.incr(f"{PREFIX}decided")
            together.execute()

    def account(self, name: str) -> Account | None:
        """Return one account, if it ever asked or has a status."""
        return next(iter(self._accounts([name])), None)

    def accounts(self, *, order: Order = "score", limit: int = 100, offset: int = 0) -> list[Account]:
        """Return accounts, highest first; those without a score come last."""
        check_order(order)
        if limit < 1:
            return []
        with self._asking():
            names = self._redis.zrevrange(f"{PREFIX}by:{order}", offset, offset + limit - 1)
        return self._accounts([name.decode() for name in names])

    def _accounts(self, names: list[str]) -> list[Account]:
        with self._asking(), self._redis.pipeline(transaction=False) as together:
            for name in names:
                together.hgetall(f"{PREFIX}account:{name}")
            rows = together.execute()
        return [_account(name, row) for name, row in zip(names, rows, strict=True) if row]

    def decisions(self, *, account: str | None = None, limit: int = 100, offset: int = 0) -> list[Decision]:
        """Return flagged queries, newest first."""
        if limit < 1:
            return []
        name = "decisions" if account is None else f"decisions:{account}"
        with self._asking():
            rows = self._redis.lrange(PREFIX + name, offset, offset + limit - 1)
        return [decision_from_json(row) for row in rows]

    def counts(self) -> dict[str, int]:
        """Return how many accounts of each status there are, and of flagged queries ever (``decisions``)."""
        with self._asking(), self._redis.pipeline() as together:
            together.zcard(f"{PREFIX}by:last_seen").scard(f"{PREFIX}trusted").scard(f"{PREFIX}banned")
            every, trusted, banned, decided = together.get(f"{PREFIX}decided").execute()
        return {
            "watched": every - trusted - banned,
            "trusted": trusted,
            "banned": banned,
            "decisions": int(decided or 0),
        }

    def set_status(self, account: str, status: Status) -> None:
        """Watch, trust or ban an account; watching it again forgets its window and its scores."""
        check_status(status)
        sets = [f"{PREFIX}trusted", f"{PREFIX}banned"]
        with self._asking():
            self._set_status(self._of(account) + sets, [account, repr(time.time()), status])

    def add_key(self, key: Key) -> None:
        """Store a key.

        Raises:
            InputError: There is one of that name.
        """
        written = json.dumps([key.key_id, key.digest.hex(), key.account, key.created])
        with self._asking():
            new = self._add_key([f"{PREFIX}key:{key.key_id}", f"{PREFIX}keys:{key.account}"], [written, key.key_id])
        if not new:
            raise InputError(f"there is a key {key.key_id!r} already")

    def find_key(self, key_id: str) -> Key | None:
        """Return a key by its public part."""
        with self._asking():
            written = self._redis.get(f"{PREFIX}key:{key_id}")
        return _key(written) if written else None

    def keys(self, account: str) -> Sequence[Key]:
        """Return the keys of an account, oldest first."""
        with self._asking():
            names = [f"{PREFIX}key:{name.decode()}" for name in self._redis.smembers(f"{PREFIX}keys:{account}")]
            rows = self._redis.mget(names) if names else []
        return sorted((_key(row) for row in rows if row), key=lambda key: (key.created, key.key_id))

    def remove_key(self, key_id: str) -> bool:
        """Remove a key and say whether there was one."""
        key = self.find_key(key_id)
        if key is None:
            return False
        with self._asking(), self._redis.pipeline() as together:
            together.delete(f"{PREFIX}key:{key_id}").srem(f"{PREFIX}keys:{key.account}", key_id)
            return bool(together.execute()[0])

    def setting(self, name: str) -> str | None:
        """Return a setting all replicas share, such as the threshold."""
        with self._asking():
            value = self._redis.hget(f"{PREFIX}settings", name)
        return None if value is None else value.decode()

    def set_setting(self, name: str, value: str) -> None:
        """Change a setting for all replicas."""
        with self._asking():
            self._redis.hset(f"{PREFIX}settings", name, value)

    def close(self) -> None:
        """Let go of the connections; everything is with Redis already."""
        self._redis.close()


def _account(name: str, row: dict[bytes, bytes]) -> Account:
    known = {field.decode(): value.decode() for field, value in row.items()}
    status: Any = known.get("status", "watched")
    score, highest = (float(known[field]) if field in known else None for field in ("score", "highest"))
    queries, poisoned = (int(known.get(field, 0)) for field in ("queries", "poisoned"))
    first, last = float(known["first_seen"]), float(known["last_seen"])
    return Account(name, status, queries, poisoned, score, highest, first, last)


def _key(written: bytes) -> Key:
    key_id, digest, account, created = json.loads(written)
    return Key(key_id, bytes.fromhex(digest), account, created)
