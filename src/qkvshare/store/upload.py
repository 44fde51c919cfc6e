"""A card file while it arrives, piece by piece."""

from __future__ import annotations

import os
import secrets
import tempfile
import threading
from pathlib import Path
from typing import IO

from ..card import CacheCard
from ..card.errors import CardFormatError, CardWriteError, StoreError
from ..card.keys import require_cryptography
from .eviction import Capacity
from .folder import Folder
from .ranged import RangedTensors

PIECE_BYTES = 1 << 20  # written, counted and sealed at once
_TAG_BYTES = 16


class Upload:
    """Bytes of a card, in a file without a name: when the process ends, the file is gone.

    It counts against the store's limit. In a store with a key its pieces are sealed (AES-256-GCM)
    with a key that is only in this process's memory.
    """

    def __init__(self, folder: Folder, capacity: Capacity) -> None:
        """``folder``: whose disk takes the file. Raises `CardWriteError`."""
        self._capacity, self._lock, self._rest = capacity, threading.Lock(), bytearray()
        self._written: list[int] = []  # bytes of each piece in the file
        self._cipher = None
        if folder.key is not None:
            require_cryptography()
            from cryptography.hazmat.primitives.ciphers.aead import AESGCM

            self._cipher = AESGCM(secrets.token_bytes(32))
        try:
            self._file: IO[bytes] = tempfile.TemporaryFile(  # noqa: SIM115 - until `close`
                dir=folder.root, buffering=0
            )
        except OSError as error:
            raise _no_space(error) from error

    def __enter__(self) -> Upload:
        """Itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Let the file go."""
        self.close()

    def close(self) -> None:
        """Let the file go; what was read of it stays."""
        with self._lock:
            self._file.close()
            self._capacity.count(-sum(self._written))
            self._written.clear()

    def write(self, data: bytes) -> None:
        """Add ``data``. Raises `StoreFullError` and `CardWriteError`."""
        with self._lock:
            self._rest += data
            while len(self._rest) >= PIECE_BYTES:
                self._put(bytes(self._rest[:PIECE_BYTES]))
                del self._rest[:PIECE_BYTES]

    def card(self) -> CacheCard:
        """The card that has arrived, its header and ids verified, the rest read on demand.

        Raises the `CardError` family, `StoreFullError` and `CardWriteError`.
        """
        with self._lock:
            self._put(bytes(self._rest))
            self._rest.clear()
        return CacheCard.opened(RangedTensors(Path("the card"), sum(self._written), self.read))

    def read(self, start: int, end: int) -> bytes:
        """Bytes ``[start, end)``, fewer where the file ends before. Raises `CardFormatError`."""
        pieces = range(start // PIECE_BYTES, min(-(-end // PIECE_BYTES), len(self._written)))
        data = b"".join(map(self._get, pieces))
        first = pieces.start * PIECE_BYTES
        return data[start - first : end - first]

    def _put(self, piece: bytes) -> None:
        """Write one piece; only the last one may be shorter than the others."""
        self._require_open()
        self._capacity.count(len(piece))
        try:
            self._capacity.make(0)
            number = len(self._written)
            if self._cipher is not None:
                sealed = self._cipher.encrypt(_nonce(number), piece, None)
            else:
                sealed = piece
            rest = memoryview(sealed)
            while rest:
                rest = rest[self._file.write(rest) :]
        except BaseException as error:
            self._capacity.count(-len(piece))
            if isinstance(error, OSError):
                raise _no_space(error) from error
            raise
        self._written.append(len(piece))

    def _require_open(self) -> None:
        if self._file.closed:
            raise StoreError("the upload is closed; send the card again.")

    def _get(self, number: int) -> bytes:
        extra = 0 if self._cipher is None else _TAG_BYTES
        with self._lock:
            self._require_open()
            length, at = self._written[number] + extra, number * (PIECE_BYTES + extra)
            data = os.pread(self._file.fileno(), length, at)
        if len(data) != length:
            raise CardFormatError(
                f"of bytes {at} to {at + length} of the upload came {len(data)}. Its file was "
                "changed; send the card again."
            )
        return data if self._cipher is None else self._cipher.decrypt(_nonce(number), data, None)


def _nonce(number: int) -> bytes:
    return number.to_bytes(12, "big")


def _no_space(error: OSError) -> CardWriteError:
    return CardWriteError(
        f"the card cannot be written here: {error.strerror}. Try again when the disk has space."
    )
