"""A safetensors object that is not read as a whole: its header first, then what is asked for."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

import msgspec
import numpy as np
from msgspec import Meta

from ..card.container import MAX_HEADER_BYTES, Array, StoredTensors
from ..card.errors import CardFormatError, CardNotFoundError

# Most headers, and most cards without their segments, are shorter: one read is enough.
FIRST_READ_BYTES = 64 << 10

_Offset = Annotated[int, Meta(ge=0, le=2**62)]
_DTYPES: dict[str, np.dtype[Any]] = {"U8": np.dtype("u1"), "I32": np.dtype("<i4")}


class Ranges(Protocol):
    """Where bytes are read from: the objects of a remote store, or a file that arrives."""

    def path(self, name: str) -> Path:
        """Where an object is, for messages."""

    def size(self, name: str) -> int | None:
        """Bytes of an object, None where there is none."""

    def read(self, name: str, start: int, end: int) -> bytes:
        """Bytes ``[start, end)``, fewer where the object ends before."""


class _Tensor(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a safetensors header says of a tensor."""

    dtype: Literal["U8", "I32"]
    shape: Annotated[list[_Offset], Meta(max_length=4)]
    data_offsets: tuple[_Offset, _Offset]


class RangedTensors(StoredTensors):
    """Tensors of an object; each is one ranged read, when it is asked for.

    Opening costs one request for the size and one or two ranged reads. Nothing in the header is
    believed before it fits the object's size; bytes are for the card to verify.
    """

    def __init__(self, objects: Ranges, name: str) -> None:
        """Read and check the header. Raises `CardNotFoundError`, `CardFormatError`, `StoreError`.

        ``name``: of the object.
        """
        self.path, self._objects, self._name = objects.path(name), objects, name
        size = objects.size(name)
        if size is None:
            raise CardNotFoundError(
                f"there is no object {self.path}. It was never put, or removed."
            )
        self._first = self._read(0, min(size, FIRST_READ_BYTES))
        self.header_bytes = 8 + int.from_bytes(self._first[:8], "little")
        if len(self._first) < 8 or self.header_bytes > min(size, MAX_HEADER_BYTES):
            raise CardFormatError(
                f"{self.path} has {size} bytes and announces a header of {self.header_bytes}; "
                f"expected at most {min(size, MAX_HEADER_BYTES)}. It is damaged or no card's."
            )
        if self.header_bytes > len(self._first):
            self._first += self._read(len(self._first), self.header_bytes)
        self.metadata, self._tensors = self._parse(self._first[8 : self.header_bytes])
        self._check_places(size - self.header_bytes)

    def __getitem__(self, name: str) -> Array:
        """Read one tensor. Raises `CardFormatError`, `CardNotFoundError` or `StoreError`."""
        tensor = self._tensors[name]
        start, end = (self.header_bytes + offset for offset in tensor.data_offsets)
        data, here = self._first[start:end], len(self._first)
        if end > here:
            data += self._read(max(start, here), end)
        return np.frombuffer(bytearray(data), _DTYPES[tensor.dtype]).reshape(tensor.shape)

    def __contains__(self, name: object) -> bool:
        """Whether there is such a tensor; reads nothing."""
        return name in self._tensors

    def __iter__(self) -> Iterator[str]:
        """Iterate over tensor names."""
        return iter(self._tensors)

    def __len__(self) -> int:
        """Count the tensors."""
        return len(self._tensors)

    def kind(self, name: str) -> tuple[str, list[int]]:
        """Element type and shape of a tensor, from the header only."""
        return self._tensors[name].dtype, list(self._tensors[name].shape)

    def _read(self, start: int, end: int) -> bytes:
        if start == end:
            return b""  # no service can be asked for nothing
        data = self._objects.read(self._name, start, end)
        if len(data) != end - start:
            raise CardFormatError(
                f"{self.path}: of bytes {start} to {end} came {len(data)}, "
                f"expected {end - start}. It was replaced meanwhile; get the card again."
            )
        return data

    def _parse(self, header: bytes) -> tuple[dict[str, str], dict[str, _Tensor]]:
        try:
            parts = msgspec.json.decode(header, type=dict[str, msgspec.Raw])
            metadata = parts.pop("__metadata__", msgspec.Raw(b"{}"))
            tensors = {n: msgspec.json.decode(raw, type=_Tensor) for n, raw in parts.items()}
            return msgspec.json.decode(metadata, type=dict[str, str]), tensors
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise CardFormatError(
                f"{self.path} has no safetensors header of a card: {error}. Expected tensors of "
                "type U8 or I32; it is damaged or something else."
            ) from error

    def _check_places(self, data_bytes: int) -> None:
        """Tensors must fill what follows the header, without gap or overlap."""
        at = 0
        for name, tensor in sorted(self._tensors.items(), key=lambda item: item[1].data_offsets):
            start, end = tensor.data_offsets
            size = _DTYPES[tensor.dtype].itemsize * math.prod(tensor.shape)
            if start != at or end - start != size or end > data_bytes:
                raise CardFormatError(
                    f"{self.path}: tensor {name[:80]} is said to be bytes {start} to {end} of "
                    f"{data_bytes}; expected {size} bytes from {at} on. It is damaged."
                )
            at = end
        if at != data_bytes:
            raise CardFormatError(
                f"{self.path}: {data_bytes} bytes follow the header, its tensors have {at}. "
                "It is damaged."
            )
