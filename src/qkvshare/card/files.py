"""Files that a user names: written whole or not at all, and read although they may change.

Somebody may change, cut short or replace a file while it is read. So it is never mapped: to touch a
page that a file lost meanwhile ends the process (SIGBUS). Every read is a copy of its own, and one
that comes short is an error.
"""

from __future__ import annotations

import os
import secrets
import stat
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError

from .digest import Bytes
from .errors import CardFormatError, CardNotFoundError, OutputError, QKVShareError

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}

# Smaller files are read as a whole when they are opened, and need no descriptor from then on: a
# card of a long chain is in a thousand files, and a process may have no more open.
_SMALL = 256 << 10


class OpenFile:
    """A regular file of ``size`` bytes; it stays readable when it is removed.

    Raises `CardNotFoundError`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            # Without O_NONBLOCK the process would wait for a pipe's writer.
            handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except (OSError, ValueError) as error:
            raise CardNotFoundError(f"no card can be read at {path}: {_reason(error)}.") from error
        self._close = weakref.finalize(self, os.close, handle)
        self._handle, self._whole = handle, b""
        found = os.fstat(handle)
        if not stat.S_ISREG(found.st_mode):
            self._close()
            raise CardNotFoundError(f"no card can be read at {path}: it is no regular file.")
        self.size = found.st_size
        if self.size <= _SMALL:
            self._whole = self.read(0, self.size).tobytes()
            self._close()

    def read(self, start: int, stop: int) -> Bytes:
        """Bytes ``[start, stop)``, a private copy. Raises `CardFormatError` if fewer are there."""
        try:
            data: Bytes = np.empty(stop - start, np.uint8)
        except MemoryError as error:
            raise CardFormatError(
                f"{self.path}: there is no memory for {stop - start} bytes of it."
            ) from error
        if not self._close.alive:
            data[:] = np.frombuffer(self._whole, np.uint8, stop - start, start)
            return data
        view: Any = data.data
        while view:
            try:
                got = os.preadv(self._handle, [view], stop - len(view))
            except OSError as error:
                raise CardFormatError(
                    f"{self.path} cannot be read: {_reason(error)}. Get the card again."
                ) from error
            if got == 0:
                raise CardFormatError(
                    f"{self.path} ends at byte {stop - len(view)}, its header says {stop} at "
                    "least: the file was cut short while it was open. Get the card again."
                )
            view = view[got:]
        return data


def read_text(path: Path, error: type[QKVShareError]) -> str:
    """The text of a UTF-8 file or pipe; a byte order mark is dropped, newlines stay as they are.

    Raises ``error``, also for devices, which may have no end.
    """
    try:
        mode = path.stat().st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISFIFO(mode)):
            raise error(f"{path} is {_kind(mode)}; expected a text file.")
        return path.read_bytes().decode("utf-8-sig")
    except (OSError, ValueError) as cause:
        raise error(f"{path} cannot be read as UTF-8 text: {_reason(cause)}.") from cause


def require_output(path: Path, error: type[QKVShareError] = OutputError) -> Path:
    """Refuse a name that no file can be written to, before the work whose result it is to hold.

    Returns the path with all symlinks followed. Raises ``error`` for what is no regular file, and
    for a folder that is missing or cannot be written to.
    """
    try:
        target = _target(path, error)
        if not stat.S_ISDIR(target.parent.stat().st_mode):
            raise error(_refusal(path, f"{target.parent} is no folder"))
    except (OSError, ValueError) as cause:
        raise error(_refusal(path, _reason(cause))) from cause
    if not os.access(target.parent, os.W_OK | os.X_OK):
        raise error(_refusal(path, f"{target.parent} is read-only"))
    return target


def replace(
    path: Path,
    fill: Callable[[Path], object],
    *,
    mode: int = 0o666,
    error: type[QKVShareError] = OutputError,
) -> None:
    """Make or replace a file so that readers see the old one or the whole new one.

    Args:
        path: the file; where it is a symlink, its target is replaced and the link stays.
        fill: writes the content to the path that it is given.
        mode: permission bits of the new file, less the user's umask.
        error: raised for what is no regular file and where writing fails; then what was there is
            as it was.
    """
    part = None
    try:
        target = _target(path, error)
        # Short, since file systems limit the length of a name; gc of a store knows the suffix.
        name = target.with_name(f".{secrets.token_hex(6)}.part")
        os.close(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode))
        part, bits = name, name.stat().st_mode
        fill(part)
        with part.open("rb") as file:
            os.fsync(file.fileno())
        part.chmod(stat.S_IMODE(bits))
        part.replace(target)
        sync_folder(target.parent)
    except (OSError, SafetensorError, ValueError) as cause:
        raise error(_refusal(path, _reason(cause))) from cause
    finally:
        if part is not None:
            part.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable, where folders can be synced at all."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _target(path: Path, error: type[QKVShareError]) -> Path:
    """The file behind all symlinks; it need not exist yet."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        pass
    else:
        if not stat.S_ISREG(mode):
            raise error(f"{path} is {_kind(mode)}; expected a new name, or a file to be replaced.")
    return Path(os.path.realpath(path))


def _kind(mode: int) -> str:
    return _KINDS.get(stat.S_IFMT(mode), "no regular file")


def _reason(cause: Exception) -> str:
    return getattr(cause, "strerror", None) or str(cause)


def _refusal(path: Path, reason: str) -> str:
    return (
        f"{path} cannot be written: {reason}. What was there is as it was. "
        "Choose a folder that exists, is writable and has room."
    )
