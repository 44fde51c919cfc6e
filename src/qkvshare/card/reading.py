"""Files that somebody may change, cut short or replace while they are read.

They are never mapped: to touch a page that a file lost meanwhile ends the process (SIGBUS). Every
read is a copy of its own, and one that comes short is an error.
"""

from __future__ import annotations

import os
import stat
import weakref
from pathlib import Path
from typing import Any

import numpy as np

from .digest import Bytes
from .errors import CardFormatError, CardNotFoundError

# Smaller files are read as a whole when they are opened, and need no descriptor from then on: a
# card of a long chain is in a thousand files, and a process may have no more open.
_SMALL = 256 << 10


class OpenFile:
    """A regular file; it stays readable when it is removed.

    Attributes:
        path: where it was.
        size: bytes, when it was opened.
    """

    def __init__(self, path: Path) -> None:
        """Open ``path``. Raises `CardNotFoundError`."""
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


def _reason(error: OSError | ValueError) -> str:
    return error.strerror or str(error) if isinstance(error, OSError) else str(error)
