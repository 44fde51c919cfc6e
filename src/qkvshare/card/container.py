"""The card file: one safetensors file, written atomically, read lazily.

Tensor names sort in the order a receiver needs them: ids first (safetensors puts wider types
first), then ``kv.<layer>.<segment>`` layer by layer, so layer 0 can start before the rest is read.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save, save_file

from .errors import CardFormatError, CardWriteError
from .file_header import ITEM_BYTES, MAX_HEADER_BYTES, FileHeader, header_length
from .files import OpenFile, replace

Array = npt.NDArray[Any]

MAGIC = "qkvshare.cachecard"
MEDIA_TYPE = "application/vnd.qkvshare.card"
# Those of profiles too.
_KINDS = {"U8": "u1", "I16": "<i2", "I32": "<i4", "F16": "<f2", "F32": "<f4"}


def ids_name(segment: int) -> str:
    """Name of the tensor with a segment's token ids, int32 ``[tokens]``."""
    return f"ids.{segment:04d}"


def blob_name(layer: int, segment: int) -> str:
    """Name of the tensor with a layer's encoded keys and values in a segment, uint8 ``[bytes]``."""
    return f"kv.{layer:04d}.{segment:04d}"


class LazyTensors(Mapping[str, Array]):
    """Tensors that are read when they are asked for."""

    # Element type ("U8", "I32") and shape of each, from the header only.
    kinds: dict[str, tuple[str, list[int]]]

    def __contains__(self, name: object) -> bool:
        return name in self.kinds

    def __iter__(self) -> Iterator[str]:
        return iter(self.kinds)

    def __len__(self) -> int:
        return len(self.kinds)


class StoredTensors(LazyTensors):
    """The tensors of a file or object, read one at a time, each as a private copy.

    Private, because the file may change between the digest check and the decode.
    """

    path: Path
    metadata: dict[str, str]
    header_bytes: int  # bytes of the file that are not the tensors' own


class FileTensors(StoredTensors):
    """Those of a safetensors file on this machine. Raises the `CardError` family."""

    def __init__(self, path: Path) -> None:
        self.path, self._file = path, OpenFile(path)
        size = self._file.size
        prefix = self._file.read(0, min(size, 8)).tobytes()
        self.header_bytes = header_length(prefix, size, path)
        header = self._file.read(8, self.header_bytes).tobytes()
        found = FileHeader.of(header, size - self.header_bytes, path)
        self.metadata, self._entries = found.metadata, found.entries
        self.kinds = found.kinds

    def __getitem__(self, name: str) -> Array:
        entry = self._entries[name]
        if entry.dtype not in _KINDS:
            raise CardFormatError(
                f"{self.path}: tensor {name[:80]} is {entry.dtype}, expected one of "
                f"{', '.join(_KINDS)}."
            )
        start, end = (self.header_bytes + offset for offset in entry.data_offsets)
        return self._file.read(start, end).view(_KINDS[entry.dtype]).reshape(entry.shape)


def kind_of(tensors: Mapping[str, Array], name: str) -> tuple[str, list[int]]:
    """Element type and shape of a tensor, without reading it where that can be avoided."""
    if isinstance(tensors, LazyTensors):
        return tensors.kinds[name]
    array = tensors[name]
    return "U8" if array.dtype == np.uint8 else "I32", list(array.shape)


def header_bytes(tensors: Mapping[str, Array], metadata: dict[str, str]) -> int:
    """Bytes that `write` will put before the tensors, known without writing anything."""
    return len(header(tensors, metadata)[0])


def header(
    tensors: Mapping[str, Array], metadata: dict[str, str]
) -> tuple[bytes, dict[str, range]]:
    """What `write` will put before the tensors, and where in the file each of them will be."""
    # Mirrors the safetensors layout: 8 bytes of length, compact JSON, spaces up to 8 bytes.
    entries: dict[str, Any] = {"__metadata__": metadata}
    kinds = {name: kind_of(tensors, name) for name in tensors}
    ranges, offset = {}, 0
    for name in sorted(kinds, key=lambda name: (-ITEM_BYTES[kinds[name][0]], name)):
        kind, shape = kinds[name]
        ranges[name] = range(offset, offset + ITEM_BYTES[kind] * math.prod(shape))
        offset = ranges[name].stop
        entries[name] = {
            "dtype": kind,
            "shape": shape,
            "data_offsets": [ranges[name].start, offset],
        }
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    start = 8 + len(text)
    at = {name: range(start + each.start, start + each.stop) for name, each in ranges.items()}
    return len(text).to_bytes(8, "little") + text, at


def write(path: Path, tensors: Mapping[str, Array], metadata: dict[str, str]) -> None:
    """Write a card so that ``path`` holds either all of it or what was there before.

    The file is private to the user (mode 600): a card is as secret as its prompt.
    Raises `CardWriteError`.
    """
    require_short(header_bytes(tensors, metadata))
    fill = partial(save_file, dict(tensors), metadata=metadata)
    replace(path, fill, mode=0o600, error=CardWriteError)


def require_short(header: int) -> None:
    """Raise `CardWriteError` for a header of more bytes than readers take."""
    if header > MAX_HEADER_BYTES:
        raise CardWriteError(
            f"the card's header has {header} bytes, readers take {MAX_HEADER_BYTES}. "
            "Make it smaller: card.compact()."
        )


def write_bytes(path: Path, data: bytes) -> None:
    """`write`, of a file whose bytes are there already. Raises `CardWriteError`."""
    replace(path, lambda part: part.write_bytes(data), mode=0o600, error=CardWriteError)


def to_bytes(tensors: Mapping[str, Array], metadata: dict[str, str]) -> bytes:
    """The bytes of the file that `write` would write."""
    return save(dict(tensors), metadata=metadata)


class CardStream:
    """The file that `write` would write, ``nbytes`` long, any part of it; never all in memory.

    ``verified`` reads a tensor by name once it is sent.
    """

    def __init__(
        self,
        tensors: Mapping[str, Array],
        metadata: dict[str, str],
        verified: Callable[[str], Array],
    ) -> None:
        self._verified = verified
        self._header, self._ranges = header(tensors, metadata)
        self.nbytes = max((at.stop for at in self._ranges.values()), default=len(self._header))

    def __call__(self, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
        """The bytes ``[start, stop)``, a tensor at a time.

        Raises `CardDigestError` at the first tensor that is damaged, before any of it.
        """
        stop = self.nbytes if stop is None else stop
        if start < len(self._header):
            yield self._header[start:stop]
        for name, at in self._ranges.items():
            if at.start < stop and start < at.stop:
                data = self._verified(name).tobytes()
                yield data[max(0, start - at.start) : stop - at.start]
