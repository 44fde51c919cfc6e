"""A safetensors object that is not read as a whole: its header first, then what is asked for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ..card.container import Array, StoredTensors
from ..card.errors import CardFormatError, CardNotFoundError
from ..card.file_header import FileHeader, header_length

# Most headers, and most cards without their segments, are shorter: one read is enough.
FIRST_READ_BYTES = 64 << 10

_DTYPES: dict[str, np.dtype[Any]] = {"U8": np.dtype("u1"), "I32": np.dtype("<i4")}


class RangedTensors(StoredTensors):
    """Tensors of an object; each is one ranged read, when it is asked for.

    Opening costs one request for the size and one or two ranged reads. Nothing in the header is
    believed before it fits the object's size; bytes are for the card to verify.
    """

    def __init__(self, path: Path, size: int | None, read: Callable[[int, int], bytes]) -> None:
        """Read and check the header. Raises `CardNotFoundError`, `CardFormatError`, `StoreError`.

        Args:
            path: where the object is, for messages.
            size: bytes of the object, None where there is none.
            read: gives bytes ``[start, end)``, fewer where the object ends before.
        """
        self.path, self._read_from = path, read
        if size is None:
            raise CardNotFoundError(
                f"there is no object {self.path}. It was never put, or removed."
            )
        self._first = self._read(0, min(size, FIRST_READ_BYTES))
        self.header_bytes = header_length(self._first, size, self.path)
        if self.header_bytes > len(self._first):
            self._first += self._read(len(self._first), self.header_bytes)
        header = self._first[8 : self.header_bytes]
        found = FileHeader.of(header, size - self.header_bytes, self.path)
        self.metadata, self._tensors = found.metadata, found.entries
        self.kinds = found.kinds

    def __getitem__(self, name: str) -> Array:
        """Read one tensor. Raises `CardFormatError`, `CardNotFoundError` or `StoreError`."""
        tensor = self._tensors[name]
        if tensor.dtype not in _DTYPES:
            raise CardFormatError(
                f"{self.path}: tensor {name[:80]} is {tensor.dtype}, expected U8 or I32."
            )
        start, end = (self.header_bytes + offset for offset in tensor.data_offsets)
        data, here = self._first[start:end], len(self._first)
        if end > here:
            data += self._read(max(start, here), end)
        return np.frombuffer(bytearray(data), _DTYPES[tensor.dtype]).reshape(tensor.shape)

    def _read(self, start: int, end: int) -> bytes:
        if start == end:
            return b""  # no service can be asked for nothing
        data = self._read_from(start, end)
        if len(data) != end - start:
            raise CardFormatError(
                f"{self.path}: of bytes {start} to {end} came {len(data)}, "
                f"expected {end - start}. It was replaced meanwhile; get the card again."
            )
        return data
