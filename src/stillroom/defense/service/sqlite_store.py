"""Accounts in one SQLite file, for a service on one machine."""

from __future__ import annotations

import logging
import math
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stillroom.defense.contracts import Ints
from stillroom.defense.service._buckets import TokenBuckets, check_limits
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
from stillroom.defense.service._memory import HotWindow, HotWindows, Note
from stillroom.defense.service._sqlite import Database
from stillroom.defense.service.store import Account, Admission, Decision, Key, Limits, Order, Status
from stillroom.defense.windows import Window, extended, latest
from stillroom.errors import InputError, OutputError

__all__ = ["SQLiteStore"]

logger = logging.getLogger(__name__)

FLUSH_SECONDS = 0.5  # between two flushes of counters and scores

TABLES = """
CREATE TABLE meta(name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE account(
    id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, status TEXT NOT NULL DEFAULT 'watched',
    total INTEGER NOT NULL DEFAULT 0, queries INTEGER NOT NULL DEFAULT 0, poisoned INTEGER NOT NULL DEFAULT 0,
    score REAL, highest REAL, first_seen REAL NOT NULL, last_seen REAL NOT NULL);
CREATE TABLE query(id INTEGER PRIMARY KEY, entry BLOB NOT NULL);
CREATE TABLE decision(id INTEGER PRIMARY KEY, account TEXT NOT NULL, written TEXT NOT NULL);
CREATE INDEX decision_of ON decision(account, id);
CREATE TABLE key(key_id TEXT PRIMARY KEY, digest BLOB NOT NULL, account TEXT NOT NULL, created REAL NOT NULL);
CREATE INDEX key_of ON key(account);
CREATE TABLE setting(name TEXT PRIMARY KEY, value TEXT NOT NULL);
"""
# The ring of account i are the rows i * W ... i * W + W - 1 of table query: one range of neighbouring pages.

NOTE = """
INSERT INTO account(name, queries, poisoned, score, highest, first_seen, last_seen)
VALUES(:name, :queries, :poisoned, :score, :highest, :first, :last)
ON CONFLICT(name) DO UPDATE SET
    queries = queries + excluded.queries, poisoned = poisoned + excluded.poisoned,
    score = coalesce(excluded.score, score),
    highest = max(coalesce(highest, excluded.highest), coalesce(excluded.highest, highest)),
    first_seen = min(first_seen, excluded.first_seen), last_seen = max(last_seen, excluded.last_seen)
"""
SHOWN = "name, status, queries, poisoned, score, highest, first_seen, last_seen"  # the fields of Account, in order


class SQLiteStore:
    """Accounts in one SQLite file, with the windows of those that asked last also in memory.

    ``append``, ``decide`` and everything an administrator changes are committed to the write-ahead log before they
    return: they survive this process being killed at any moment. (After a power cut the last moments before it may be
    missing, the file stays sound.) Counters and scores follow within a second.
    Token buckets live in memory: a restart fills them.

    Several processes may open the file, say a command that makes keys beside the service; each then notices what the
    others wrote, but limits hold for each process alone. Several replicas need
    :class:`~stillroom.defense.service.redis_store.RedisStore`.

    Args:
        path: The file; made when it does not exist.
        size: W, queries a window holds.
        width: Features of a query.
        identity: Names the guard, so that a file made for another one is refused.
        cache: Bytes of windows kept in memory.

    Raises:
        InputError: The file is no database, was made for another guard, or cannot be opened.

    Example:
        >>> store = SQLiteStore(":memory:", size=16, width=2)
        Traceback (most recent call last):
        stillroom.errors.InputError: a database in memory would lose its accounts; give the path of a file
    """

    local = True

    def __init__(self, path: str | Path, *, size: int, width: int, identity: str = "", cache: int = 64 * 2**20) -> None:
        if str(path) == ":memory:":
            raise InputError("a database in memory would lose its accounts; give the path of a file")
        self.path, self.size, self.width, self.identity, self.cache = Path(path), size, width, identity, cache
        self._form = QueryFormat(size, width)
        self._hot = HotWindows(cache)
        self._notes: dict[str, Note] = {}
        self._written: list[str] = []  # notes that the transaction under way has written
        self._buckets = TokenBuckets()
        self._db = Database(self.path)
        try:
            self._prepare()
        except BaseException:
            self._db.close()
            raise
        self._closing = threading.Event()
        self._housekeeping = threading.Thread(target=self._keep_house, name="stillroom-accounts", daemon=True)
        self._housekeeping.start()

    def _prepare(self) -> None:
        try:
            with self._db.transaction() as db:
                if not db.execute("SELECT 1 FROM sqlite_master").fetchone():
                    for statement in TABLES.split(";\n"):
                        db.execute(statement)
                    meta = {"format": FORMAT, "size": self.size, "width": self.width, "identity": self.identity}
                    db.executemany("INSERT INTO meta VALUES(?, ?)", [(name, str(meta[name])) for name in meta])
                found = dict(db.execute("SELECT name, value FROM meta"))
        except OutputError as error:
            raise InputError(f"{self.path} does not serve as a database of accounts: {error.__cause__}") from error
        require_same_guard(str(self.path), self._form, self.identity, found)

    # -- queries -----------------------------------------------------------------------------------------------------

    def append(self, account: str, features: NDArray[np.floating], classes: Ints) -> Window:
        """Take in consecutive queries and return them with those before; on disk when it returns.

        Shapes:
            features: [n, d]. classes: [n], predicted.

        Raises:
            InputError: Shapes do not fit, or a feature is not finite.
            OutputError: The database could not be written; the queries are not in it.
        """
        kept, labels = self._form.check(features, classes)
        with self._db.lock:
            with self._transaction() as db:
                hot = self._hot.get(account) or self._read(db, account)
                window = extended(hot.window, kept, labels, self.size)
                last = latest(window, self.size)
                new = min(len(labels), self.size)
                slots = [hot.number * self.size + at % self.size for at in range(window.total - new, window.total)]
                rows = self._form.rows(last.features[-new:], last.classes[-new:])
                for slot, row in zip(slots, rows, strict=True):
                    db.execute("INSERT OR REPLACE INTO query VALUES(?, ?)", (slot, row))
                db.execute("UPDATE account SET total = ? WHERE id = ?", (window.total, hot.number))
            self._hot.put(account, HotWindow(hot.number, last))
        return window

    def forget(self, account: str) -> None:
        """Drop an account's window and scores; its status, keys and decisions stay."""
        with self._transaction() as db:
            self._write_notes(db, [account])
            self._forget(db, account)

    def _forget(self, db: sqlite3.Connection, account: str) -> None:
        self._hot.drop(account)
        known = db.execute("SELECT id FROM account WHERE name = ?", (account,)).fetchone()
        if known is not None:
            first = known[0] * self.size
            db.execute("DELETE FROM query WHERE id BETWEEN ? AND ?", (first, first + self.size - 1))
            db.execute("UPDATE account SET total = 0, score = NULL, highest = NULL WHERE id = ?", known)

    def _read(self, db: sqlite3.Connection, account: str) -> HotWindow:
        known = db.execute("SELECT id, total FROM account WHERE name = ?", (account,)).fetchone()
        if known is None:
            now = time.time()
            number = db.execute(NOTE, _row(account, Note(now, now))).lastrowid
            assert number is not None  # it is one after an insertion
            total = 0
        else:
            number, total = known
        first = number * self.size
        found = db.execute(
            "SELECT entry FROM query WHERE id BETWEEN ? AND ? ORDER BY id", (first, first + self.size - 1)
        )
        ring = [row[0] for row in found]
        oldest = total % self.size if total > self.size else 0
        return HotWindow(number, self._form.window(ring[oldest:] + ring[:oldest], total))

    # -- limits, counters, scores ------------------------------------------------------------------------------------

    def admit(self, account: str, images: int, limits: Limits, now: float) -> Admission:
        """Charge an account for a request of so many images, unless it is banned or its bucket is too empty.

        Its ``queries`` count what was admitted. A request larger than the bucket waits for ever (``inf``).

        Raises:
            InputError: The limits or the number of images make no sense.
        """
        check_limits(images, limits)
        known = self._db.one("SELECT status FROM account WHERE name = ?", account)
        status: Status = known[0] if known else "watched"
        if status == "banned":
            return Admission(status, 0.0)
        with self._db.lock:
            wait = self._buckets.take(account, images, limits, now)
            if not wait:
                self._note(account, Note(now, now, queries=images))
        return Admission(status, wait)

    def record(self, account: str, *, score: float | None, poisoned: int, now: float) -> None:
        """Note the latest score (None or NaN: none was due, the one before stays) and the answers poisoned."""
        if score is not None and math.isnan(score):
            score = None
        with self._db.lock:
            self._note(account, Note(now, now, poisoned=poisoned, score=score, highest=score))

    def _note(self, account: str, note: Note) -> None:
        before = self._notes.get(account)
        self._notes[account] = note if before is None else before.then(note)

    def _write_notes(self, db: sqlite3.Connection, accounts: Sequence[str]) -> None:
        """Write what is noted of accounts; :meth:`_transaction` takes the notes away once they are committed."""
        for account in accounts:
            if account in self._notes:
                db.execute(NOTE, _row(account, self._notes[account]))
                self._written.append(account)

    def _flush(self) -> None:
        if self._notes:
            with self._transaction() as db:
                self._write_notes(db, list(self._notes))

    # -- what an administrator sees and changes ----------------------------------------------------------------------

    def decide(self, decision: Decision) -> None:
        """Write down a flagged query; of each account the last 1000 are kept."""
        with self._transaction() as db:
            written = (decision.account, decision_to_json(decision))
            db.execute("INSERT INTO decision(account, written) VALUES(?, ?)", written)
            db.execute(
                "DELETE FROM decision WHERE account = :name AND id <= (SELECT id FROM decision WHERE account = :name "
                "ORDER BY id DESC LIMIT 1 OFFSET :kept)",
                {"name": decision.account, "kept": KEPT_DECISIONS},
            )

    def account(self, name: str) -> Account | None:
        """Return one account, if it ever asked or has a status."""
        with self._db.lock:
            if name in self._notes:
                with self._transaction() as db:
                    self._write_notes(db, [name])
        row = self._db.one(f"SELECT {SHOWN} FROM account WHERE name = ?", name)
        return Account(*row) if row else None

    def accounts(self, *, order: Order = "score", limit: int = 100, offset: int = 0) -> list[Account]:
        """Return accounts, highest first; those without a score come last."""
        check_order(order)
        self._flush()
        select = f"SELECT {SHOWN} FROM account ORDER BY {order} DESC, name DESC LIMIT ? OFFSET ?"
        return [Account(*row) for row in self._db.table(select, limit, offset)]

    def decisions(self, *, account: str | None = None, limit: int = 100, offset: int = 0) -> list[Decision]:
        """Return flagged queries, newest first."""
        if account is None:
            rows = self._db.table("SELECT written FROM decision ORDER BY id DESC LIMIT ? OFFSET ?", limit, offset)
        else:
            select = "SELECT written FROM decision WHERE account = ? ORDER BY id DESC LIMIT ? OFFSET ?"
            rows = self._db.table(select, account, limit, offset)
        return [decision_from_json(row[0]) for row in rows]

    def counts(self) -> dict[str, int]:
        """Return how many accounts of each status there are, and of flagged queries ever (``decisions``)."""
        self._flush()
        found = dict(self._db.table("SELECT status, count(*) FROM account GROUP BY status"))
        # Old decisions are deleted, the newest never is: its number counts them all.
        ever = self._db.table("SELECT coalesce(max(id), 0) FROM decision")[0][0]
        return {**{status: found.get(status, 0) for status in ("watched", "trusted", "banned")}, "decisions": ever}

    def set_status(self, account: str, status: Status) -> None:
        """Watch, trust or ban an account; watching it again forgets its window and its scores."""
        check_status(status)
        now = time.time()
        with self._transaction() as db:
            self._write_notes(db, [account])
            if not db.execute("UPDATE account SET status = ? WHERE name = ?", (status, account)).rowcount:
                db.execute(NOTE, _row(account, Note(now, now)))
                db.execute("UPDATE account SET status = ? WHERE name = ?", (status, account))
            if status == "watched":
                self._forget(db, account)

    def add_key(self, key: Key) -> None:
        """Store a key.

        Raises:
            InputError: There is one of that name.
        """
        row = (key.key_id, key.digest, key.account, key.created)
        with self._transaction() as db:
            if not db.execute("INSERT OR IGNORE INTO key VALUES(?, ?, ?, ?)", row).rowcount:
                raise InputError(f"there is a key {key.key_id!r} already")

    def find_key(self, key_id: str) -> Key | None:
        """Return a key by its public part."""
        row = self._db.one("SELECT key_id, digest, account, created FROM key WHERE key_id = ?", key_id)
        return Key(*row) if row else None

    def keys(self, account: str) -> Sequence[Key]:
        """Return the keys of an account, oldest first."""
        select = "SELECT key_id, digest, account, created FROM key WHERE account = ? ORDER BY created, key_id"
        return [Key(*row) for row in self._db.table(select, account)]

    def remove_key(self, key_id: str) -> bool:
        """Remove a key and say whether there was one."""
        with self._transaction() as db:
            return db.execute("DELETE FROM key WHERE key_id = ?", (key_id,)).rowcount > 0

    def setting(self, name: str) -> str | None:
        """Return a setting, such as the threshold."""
        row = self._db.one("SELECT value FROM setting WHERE name = ?", name)
        return str(row[0]) if row else None

    def set_setting(self, name: str, value: str) -> None:
        """Change a setting."""
        with self._transaction() as db:
            db.execute("INSERT OR REPLACE INTO setting VALUES(?, ?)", (name, value))

    # -- the database ------------------------------------------------------------------------------------------------

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._db.lock:
            self._written.clear()
            with self._db.transaction() as db:
                if self._db.changed():
                    self._hot.clear()
                yield db
            for account in self._written:
                del self._notes[account]

    def _keep_house(self) -> None:
        while not self._closing.wait(FLUSH_SECONDS):
            try:
                self._flush()
                self._db.shorten_log()
            except (OutputError, OSError):  # the notes are still there for the next time
                logger.exception("accounts could not be written")

    def close(self) -> None:
        """Write what is still to be written and let go of the database; no harm in closing twice."""
        if self._closing.is_set():
            return
        self._closing.set()
        self._housekeeping.join()
        try:
            self._flush()
        finally:
            self._db.close()


def _row(account: str, note: Note) -> dict[str, object]:
    return {"name": account, **vars(note)}
