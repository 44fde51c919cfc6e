"""The SQLite index: what is in the store, who uses it, and what is worth keeping.

It can be made again from the files (`audit.rebuild`). Files are removed only while its write lock
is held, and a card is acknowledged only after it was seen, under the same lock, that all of its
files are there. So no other lock is needed, and a process that is killed leaves none behind.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..card.errors import StoreError

VERSION = 1
_BUSY_SECONDS = 60.0

_SCHEMA = """
CREATE TABLE card (
    digest TEXT PRIMARY KEY, agent TEXT NOT NULL, tokens INTEGER NOT NULL, bytes INTEGER NOT NULL,
    put_at REAL NOT NULL, used_at REAL NOT NULL, expires_at REAL, hits INTEGER NOT NULL DEFAULT 0,
    saved_ms REAL NOT NULL, priority REAL NOT NULL DEFAULT 0, yields_at REAL);
CREATE INDEX card_priority ON card (priority);
CREATE INDEX card_agent ON card (agent, put_at);
CREATE INDEX card_expires ON card (expires_at) WHERE expires_at IS NOT NULL;
CREATE TABLE segment (name TEXT PRIMARY KEY, bytes INTEGER NOT NULL);
CREATE TABLE part (
    card TEXT NOT NULL REFERENCES card ON DELETE CASCADE, number INTEGER NOT NULL,
    segment TEXT NOT NULL REFERENCES segment, PRIMARY KEY (card, number)) WITHOUT ROWID;
CREATE INDEX part_segment ON part (segment);
CREATE TABLE prefix (
    name BLOB NOT NULL, card TEXT NOT NULL REFERENCES card ON DELETE CASCADE,
    block BLOB NOT NULL, length INTEGER NOT NULL, PRIMARY KEY (name, card)) WITHOUT ROWID;
CREATE INDEX prefix_block ON prefix (block, length);
CREATE INDEX prefix_card ON prefix (card);
CREATE TABLE lease (
    holder TEXT PRIMARY KEY, card TEXT NOT NULL REFERENCES card ON DELETE CASCADE,
    until REAL NOT NULL);
CREATE INDEX lease_card ON lease (card);
CREATE TABLE waiting (
    card TEXT PRIMARY KEY, tool TEXT NOT NULL, began REAL NOT NULL, saved_ms REAL NOT NULL,
    bytes INTEGER NOT NULL);
CREATE TABLE waited (
    tool TEXT NOT NULL, began REAL NOT NULL, seconds REAL NOT NULL, saved_ms REAL NOT NULL,
    bytes INTEGER NOT NULL);
CREATE INDEX waited_tool ON waited (tool, began);
CREATE TABLE total (id INTEGER PRIMARY KEY CHECK (id = 0), bytes INTEGER NOT NULL,
    clock REAL NOT NULL, complete INTEGER NOT NULL);
INSERT INTO total VALUES (0, 0, 0, 0);
CREATE TRIGGER card_in AFTER INSERT ON card
    BEGIN UPDATE total SET bytes = bytes + new.bytes; END;
CREATE TRIGGER card_out AFTER DELETE ON card
    BEGIN UPDATE total SET bytes = bytes - old.bytes; END;
CREATE TRIGGER segment_in AFTER INSERT ON segment
    BEGIN UPDATE total SET bytes = bytes + new.bytes; END;
CREATE TRIGGER segment_out AFTER DELETE ON segment
    BEGIN UPDATE total SET bytes = bytes - old.bytes; END;
"""


class Index:
    """One connection to the index; may be shared by threads, which then take turns."""

    def __init__(self, path: Path) -> None:
        """Open or make the index at ``path``. Raises `StoreError`."""
        self.path = path
        self._turn = threading.RLock()
        try:
            self._db = sqlite3.connect(
                path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False
            )
            path.chmod(0o600)
            self._db.row_factory = sqlite3.Row
            self._write_ahead()
            # An acknowledged card survives a power cut, not only a kill.
            self._db.execute("PRAGMA synchronous = FULL")
            self._db.execute("PRAGMA foreign_keys = ON")
            self._migrate()
        except (sqlite3.Error, OSError) as error:
            raise StoreError(
                f"the index {path} cannot be used: {error}. If it is damaged, remove it: "
                "it is made again from the files when the store is opened."
            ) from error

    def _write_ahead(self) -> None:
        """Whoever opens a new index besides is waited for, which SQLite does not do here."""
        latest = time.monotonic() + _BUSY_SECONDS
        while True:
            try:
                self._db.execute("PRAGMA journal_mode = WAL")
                return
            except sqlite3.OperationalError as error:
                busy = error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY
                if not busy or time.monotonic() > latest:
                    raise
                time.sleep(0.005)

    def _migrate(self) -> None:
        with self.writing():  # two processes may open a new store at once
            (found,) = self._db.execute("PRAGMA user_version").fetchone()
            if found not in (0, VERSION):
                raise StoreError(
                    f"{self.path} has version {found}, this package reads {VERSION}. Use the "
                    "package version that wrote it, or remove the index: it is made again from "
                    "the files."
                )
            if found == 0:
                for statement in _statements(_SCHEMA):
                    self._db.execute(statement)
                self._db.execute(f"PRAGMA user_version = {VERSION}")

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Hold the write lock, across processes; all of it happens or nothing.

        Raises `StoreError`, also where the disk is full.
        """
        with self._turn, self._asking():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:  # SQLite ends it by itself after some errors
                    self._db.execute("ROLLBACK")
                raise

    def rows(self, query: str, *values: Any) -> list[sqlite3.Row]:
        """All rows of a query. Raises `StoreError`."""
        with self._turn, self._asking():
            return self._db.execute(query, values).fetchall()

    def row(self, query: str, *values: Any) -> sqlite3.Row | None:
        """The first row of a query, None if there is none. Raises `StoreError`."""
        return next(iter(self.rows(query, *values)), None)

    @property
    def complete(self) -> bool:
        """Whether all cards in the folder were entered once; False in a new index."""
        return bool(self.rows("SELECT complete FROM total")[0]["complete"])

    def mark_complete(self) -> None:
        """Say so."""
        with self.writing():
            self.run("UPDATE total SET complete = 1")

    @contextmanager
    def _asking(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise StoreError(
                f"the index {self.path} does not answer: {error}. If the disk is full, make room; "
                f"if others use the store, try again (waited {_BUSY_SECONDS:.0f} s for them); if "
                "the index is damaged, remove it: it is made again from the files when the store "
                "is opened."
            ) from error

    def run(self, statement: str, *values: Any) -> int:
        """Execute a statement within `writing`; returns the number of rows changed."""
        return self._db.execute(statement, values).rowcount

    def close(self) -> None:
        """Close the connection."""
        with self._turn:
            self._db.close()


def _statements(script: str) -> Iterator[str]:
    """Single statements: `executescript` would commit in the middle."""
    statement = ""
    for line in script.splitlines():
        statement += line + "\n"
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""
