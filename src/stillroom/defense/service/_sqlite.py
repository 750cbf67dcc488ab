"""One SQLite file used from many threads: short transactions, and a write-ahead log that no request has to clear."""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from stillroom.errors import InputError, OutputError

__all__ = ["Database"]

LONG_LOG = 64 * 2**20  # bytes of the write-ahead log that are carried over into the database
PATIENCE = 10  # seconds to wait while another process writes


class Database:
    """A file in write-ahead mode: one connection writes, one reads single rows, and tables are read on fresh ones.

    Args:
        path: The file; made, for its owner alone, when it does not exist.

    Raises:
        InputError: It cannot be opened, or is no database.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lock = threading.RLock()  # held by who writes
        self._reading = threading.Lock()
        try:
            os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
        except OSError as error:
            raise InputError(f"cannot open {path}: {error.strerror}") from error
        opened: list[sqlite3.Connection] = []
        try:
            for _ in range(3):
                opened.append(sqlite3.connect(path, timeout=PATIENCE, isolation_level=None, check_same_thread=False))
                _set_up(opened[-1])
            self._writer, self._reader, self._keeper = opened
            self._writer.execute("PRAGMA journal_mode = WAL")
            self._version = self._data_version()
        except sqlite3.Error as error:
            for connection in opened:
                connection.close()
            raise InputError(f"cannot use {path} as a database: {error}") from error

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Write all of it or nothing, while no other process writes.

        Raises:
            OutputError: It could not be written.
        """
        with self.lock, self._errors():
            self._writer.execute("BEGIN IMMEDIATE")
            try:
                yield self._writer
                self._writer.execute("COMMIT")
            except BaseException:
                if self._writer.in_transaction:
                    self._writer.execute("ROLLBACK")
                raise

    def changed(self) -> bool:
        """Say, within a transaction, whether another process wrote since this was asked last."""
        before, self._version = self._version, self._data_version()
        return before != self._version

    def _data_version(self) -> int:
        return int(self._writer.execute("PRAGMA data_version").fetchone()[0])

    def one(self, select: str, *values: object) -> tuple[Any, ...] | None:
        """Read one row, if there is one."""
        with self._reading, self._errors():
            row: tuple[Any, ...] | None = self._reader.execute(select, values).fetchone()
            return row

    def table(self, select: str, *values: object) -> list[tuple[Any, ...]]:
        """Read many rows; nobody waits for them."""
        with self._errors(), closing(sqlite3.connect(self.path, timeout=PATIENCE)) as connection:
            return connection.execute(select, values).fetchall()

    def shorten_log(self) -> None:
        """Carry a long write-ahead log over into the database; for a thread that may wait for the disk."""
        log = self.path.with_name(f"{self.path.name}-wal")
        if not log.exists() or log.stat().st_size < LONG_LOG:
            return
        with self._errors():
            self._keeper.execute("PRAGMA wal_checkpoint(PASSIVE)")  # most of it, while others go on writing
            with self.lock:
                # The little that came meanwhile. On another connection it would count as a change by another process.
                self._writer.execute("PRAGMA busy_timeout = 0")  # whoever reads a table is not waited for
                self._writer.execute("PRAGMA wal_checkpoint(TRUNCATE)")
                self._writer.execute(f"PRAGMA busy_timeout = {PATIENCE * 1000}")

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise OutputError(f"the database {self.path} failed: {error}") from error

    def close(self) -> None:
        """Let go of the file; the last to do so carries the log over."""
        with self.lock, self._reading:
            for connection in (self._reader, self._keeper, self._writer):
                connection.close()


def _set_up(connection: sqlite3.Connection) -> None:
    connection.execute("PRAGMA synchronous = NORMAL")  # in the log when a commit returns, synced at checkpoints
    connection.execute("PRAGMA wal_autocheckpoint = 0")  # no request has to carry the log over
