"""The SQLite index: what is in the store, who uses it, and what is worth keeping.

It can be made again from the files (`audit.rebuild`). Files are removed only while its write lock
is held, and a card is acknowledged only after it was seen, under the same lock, that all of its
files are there. So no other lock is needed, and a process that is killed leaves none behind.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ..card.errors import StoreError
from .database import Database, connect, disk_full, named


class Index:
    """One connection to the index; threads may share it, and then wait for each other.

    Somebody may remove the file while it is open. The next one who asks then makes it again.
    """

    def __init__(self, path: Path, fill: Callable[[Index], None]) -> None:
        """Open or make the index at ``path``, beside the store's folder ``cards``.

        ``fill`` enters all cards that have files into a new index. Raises `StoreError`, and what
        ``fill`` does.
        """
        self.path, self._fill = path, fill
        self._lock = threading.RLock()
        self._open()

    def _open(self) -> None:
        if not (self.path.parent / "cards").is_dir():
            raise StoreError(
                f"the store's folder {self.path.parent} is away: it has no folder 'cards'. "
                "It was moved, or its disk is not mounted. Nothing was changed; put it back."
            )
        with self._named_errors():
            self._opened: Database = connect(self.path)
            self._db = self._opened.connection
        self.read_only = False
        try:
            (total,) = self.rows("SELECT complete FROM total")
            if not total["complete"]:  # a new index, or one whose maker was killed
                self._fill(self)
                with self.writing():
                    self.run("UPDATE total SET complete = 1")
        except BaseException:
            self._opened.close()
            raise
        self.read_only = not self._opened.writable

    @property
    def in_place(self) -> bool:
        """Whether others who open the store now see what is written here."""
        return self._opened.in_place

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Hold the write lock, across processes; all of it happens or nothing.

        Raises `StoreError`, or `StoreFullError` where the disk is full.
        """
        with self._lock, self._named_errors():
            self._begin()
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:  # SQLite ends it by itself after some errors
                    self._db.execute("ROLLBACK")
                raise

    def _begin(self) -> None:
        """Begin to write, in the file that is at the path now."""
        while True:
            self.require_writable()
            self._db.execute("BEGIN IMMEDIATE")
            if self.in_place:
                return
            self._db.execute("ROLLBACK")

    def _follow(self) -> None:
        """Open what is at the path now, if the file was removed or nobody else can use it."""
        if self._opened.file is not None:
            if self._db.in_transaction:
                return
            again = self._opened.alone and not disk_full(self.path.parent)
            if self.in_place and not again:
                return
            self._opened.close()
        self._open()

    def require_writable(self) -> None:
        """Raise `StoreError` where the folder can only be read, or is away."""
        with self._lock:
            self._follow()
        if self.read_only:
            raise StoreError(
                f"the store {self.path.parent} can only be read: its folder cannot be written. "
                "Mount it to be written, or copy it to where it can be."
            )

    def rows(self, query: str, *values: Any) -> list[sqlite3.Row]:
        """All rows of a query. Raises `StoreError`."""
        with self._lock, self._named_errors():
            self._follow()
            return self._db.execute(query, values).fetchall()

    def row(self, query: str, *values: Any) -> sqlite3.Row | None:
        """The first row of a query, None if there is none. Raises `StoreError`."""
        return next(iter(self.rows(query, *values)), None)

    @contextmanager
    def _named_errors(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise named(self.path, error) from error

    def run(self, statement: str, *values: Any) -> int:
        """Execute a statement within `writing`; returns the number of rows changed."""
        return self._db.execute(statement, values).rowcount

    def shrink(self) -> None:
        """Give back the disk space of SQLite's log, as far as nobody reads it."""
        with suppress(sqlite3.Error), self._lock:
            self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def close(self) -> None:
        """Close the connection."""
        with self._lock:
            self._opened.close()
