"""Open the SQLite file of the index: to write, or only to read where the disk allows no more."""

from __future__ import annotations

import errno
import os
import shutil
import sqlite3
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from filelock import FileLock

from ..card.errors import StoreError, StoreFullError
from .schema import PIECES, SCHEMA, VERSION

BUSY_SECONDS = 60.0
# SQLite asks for less at once; with so little free an unclear failure is taken for a full disk.
_FULL_BYTES = 256 << 10


@dataclass
class Database:
    """A connection, and what it is connected to.

    Attributes:
        path: the file that is open; a private copy has another path than the index.
        writable: False where the store's folder cannot be written.
        alone: whether no other process can use the index until this connection is closed.
        copied: the folder of a private copy, removed by `close`.
    """

    connection: sqlite3.Connection
    path: Path
    writable: bool = True
    alone: bool = False
    copied: tempfile.TemporaryDirectory[str] | None = None
    file: tuple[int, int] | None = field(init=False)

    def __post_init__(self) -> None:
        """Remember which file it is."""
        self.file = _file(self.path)

    @property
    def in_place(self) -> bool:
        """Whether the path still leads to the open file: somebody may have removed it."""
        return self.file is not None and _file(self.path) == self.file

    def close(self) -> None:
        """Close the connection."""
        self.connection.close()
        self.file = None
        if self.copied is not None:
            self.copied.cleanup()


def connect(path: Path) -> Database:
    """Open the index, or make an empty one. Raises `StoreError`, `sqlite3.Error` and `OSError`."""
    if not os.access(path.parent, os.W_OK):
        return _read_only(path)
    require_locks(path.parent)
    if path.exists():
        return _to_write(path)
    with FileLock(path.with_name(".index.lock"), mode=0o600):
        if not path.exists():
            # These are left of an index that was removed; SQLite would read them as the new one's.
            for end in ("-wal", "-shm"):
                path.with_name(path.name + end).unlink(missing_ok=True)
        return _to_write(path)


def require_locks(folder: Path) -> None:
    """Raise `StoreError` where files cannot be locked, as on some network file systems.

    SQLite takes the same error for a lock that somebody else holds, and waits.
    """
    if os.name != "posix":
        return
    import fcntl

    missing = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in missing:
            raise StoreError(
                f"files in {folder} cannot be locked ({error.strerror}): it is on a network file "
                "system without locks. Keep the store on a local file system."
            ) from error


def named(path: Path, error: sqlite3.Error | OSError) -> StoreError:
    """What an error of SQLite means for the user of the index at ``path``."""
    code = getattr(error, "sqlite_errorcode", 0)
    kind = code & 0xFF
    unclear = kind in (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN) and disk_full(path.parent)
    if kind == sqlite3.SQLITE_FULL or getattr(error, "errno", 0) == errno.ENOSPC or unclear:
        return StoreFullError(
            f"the disk is full: {path} cannot grow. Free some of the disk, or remove cards."
        )
    if kind == sqlite3.SQLITE_BUSY:
        return StoreError(
            f"another process has locked the index {path} for more than {BUSY_SECONDS:.0f} s. "
            "Wait for it, or stop it, and try again."
        )
    if kind in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return StoreError(
            f"the index {path} is damaged: {error}. Remove this one file, also while others use "
            "the store: it is made again from the files. Times to live, leases and uses are lost, "
            "and prompts find no card until it is put again."
        )
    return StoreError(
        f"the store {path.parent} does not work: {error}. Check that its files can be read and "
        "written, and that its disk works, then try again."
    )


def _to_write(path: Path, alone: bool = False) -> Database:
    connection = _connection(path.as_uri())
    try:
        path.chmod(0o600)
        if alone:
            connection.execute("PRAGMA locking_mode = EXCLUSIVE")
        _write_ahead(connection)
        # An acknowledged card survives a power cut, not only a kill.
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA foreign_keys = ON")
        _migrate(connection, path)
    except BaseException as error:
        connection.close()
        code = getattr(error, "sqlite_errorcode", None)
        if code == sqlite3.SQLITE_IOERR_SHMSIZE and not alone:
            # The disk is full. What processes share is kept in memory then, so there is only one.
            return _to_write(path, alone=True)
        raise
    return Database(connection, path, alone=alone)


def _read_only(path: Path) -> Database:
    """As it is now, where a process that writes has it open; otherwise a private copy."""
    try:
        connection = _connection(f"{path.as_uri()}?mode=ro")
        try:
            (complete,) = connection.execute("SELECT complete FROM total").fetchone()
            if complete and _version(connection) == VERSION:
                return Database(connection, path, writable=False)
        except BaseException:
            connection.close()
            raise
        connection.close()
    except sqlite3.OperationalError:
        pass  # SQLite must write beside an index that nobody has open, or it is not there
    copied = tempfile.TemporaryDirectory(prefix="qkvshare-index-")
    copy = Path(copied.name, path.name)
    for end in ("", "-wal"):
        source = path.with_name(path.name + end)
        if source.exists():
            shutil.copyfile(source, copy.with_name(copy.name + end))
    opened = _to_write(copy)
    return Database(opened.connection, copy, writable=False, copied=copied)


def _connection(uri: str) -> sqlite3.Connection:
    connection = sqlite3.connect(
        uri, uri=True, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False
    )
    connection.row_factory = sqlite3.Row
    return connection


def _write_ahead(connection: sqlite3.Connection) -> None:
    """Whoever opens a new index besides is waited for, which SQLite does not do here."""
    latest = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            busy = error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY
            if not busy or time.monotonic() > latest:
                raise
            time.sleep(0.005)


def _migrate(connection: sqlite3.Connection, path: Path) -> None:
    if _version(connection) == VERSION:
        return
    connection.execute("BEGIN IMMEDIATE")  # two processes may open a new store at once
    with connection:
        found = _version(connection)
        if found not in (0, 1, VERSION):
            raise StoreError(
                f"{path} has version {found}, this package reads {VERSION}. Use the package "
                "version that wrote it, or remove the file: the index is made again from the cards."
            )
        # One by one: `executescript` would commit in the middle.
        for statement in {0: SCHEMA + PIECES, 1: PIECES}.get(found, "").split(";\n"):
            connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {VERSION}")


def _version(connection: sqlite3.Connection) -> int:
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def _file(path: Path) -> tuple[int, int] | None:
    """Device and number of a file, None if it is not there."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def disk_full(folder: Path) -> bool:
    """Whether the disk is as good as full."""
    try:
        return shutil.disk_usage(folder).free < _FULL_BYTES
    except OSError:
        return False
