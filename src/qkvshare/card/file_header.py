"""The header of a safetensors file: parsed strictly, believed only where it fits the file."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from .errors import CardFormatError

# A header of 16 MiB holds some 100,000 layer-segments; anything larger is an attack or an accident.
MAX_HEADER_BYTES = 16 << 20
ITEM_BYTES = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2"), 1),
    **dict.fromkeys(("I16", "U16", "F16", "BF16"), 2),
    **dict.fromkeys(("I32", "U32", "F32"), 4),
    **dict.fromkeys(("I64", "U64", "F64"), 8),
}

_Offset = Annotated[int, Meta(ge=0, le=2**62)]


class TensorEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a header says of a tensor; ``data_offsets`` count from the header's end."""

    dtype: str
    shape: Annotated[list[_Offset], Meta(max_length=8)]
    data_offsets: tuple[_Offset, _Offset]


@dataclass(frozen=True)
class FileHeader:
    """A header's metadata, and its tensors by name."""

    metadata: dict[str, str]
    entries: Mapping[str, TensorEntry]

    @property
    def kinds(self) -> dict[str, tuple[str, list[int]]]:
        """Element type and shape of each tensor."""
        return {name: (at.dtype, list(at.shape)) for name, at in self.entries.items()}

    @classmethod
    def of(cls, header: bytes, data_bytes: int, where: object) -> FileHeader:
        """Parse ``header``, which ``data_bytes`` follow in the file ``where``.

        Tensors must fill what follows without gap or overlap. Raises `CardFormatError`.
        """
        try:
            parts = _object(header)
            metadata = _object(parts.pop("__metadata__", msgspec.Raw(b"{}")))
            texts = {name: msgspec.json.decode(raw, type=str) for name, raw in metadata.items()}
            entries = {
                name: msgspec.json.decode(raw, type=TensorEntry) for name, raw in parts.items()
            }
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise CardFormatError(
                f"{where} is not a safetensors file: {error}. Expected a card; it was cut short, "
                "damaged, or is something else."
            ) from error
        _check_entries(entries, data_bytes, where)
        return cls(texts, entries)


def header_length(prefix: bytes, size: int, where: object) -> int:
    """Bytes before the tensors of a file of ``size`` bytes, from its first 8.

    Raises `CardFormatError` for more than the file has, or than `MAX_HEADER_BYTES`.
    """
    if len(prefix) < 8:
        raise CardFormatError(f"{where} has {size} bytes; a card has at least a header. Cut short?")
    length = 8 + int.from_bytes(prefix[:8], "little")
    if length > min(size, MAX_HEADER_BYTES):
        raise CardFormatError(
            f"{where} announces a header of {length} bytes; expected at most "
            f"{min(size, MAX_HEADER_BYTES)} (file of {size} bytes). It is damaged or not a card."
        )
    return length


class _Name:
    """A name as a key that equals no other, so that names that stand twice are not lost."""

    def __init__(self, text: str) -> None:
        self.text = text


def _object(data: bytes | msgspec.Raw) -> dict[str, msgspec.Raw]:
    """The members of a JSON object. Raises `msgspec.DecodeError`, also for a name that comes twice:
    readers do not agree on which of the two counts.
    """
    hook: Any = lambda kind, text: kind(text)  # noqa: E731
    found = msgspec.json.decode(data, type=dict[_Name, msgspec.Raw], dec_hook=hook)
    members = {name.text: raw for name, raw in found.items()}
    if len(members) < len(found):
        raise msgspec.DecodeError("a name stands twice in its header")
    return members


def _check_entries(entries: Mapping[str, TensorEntry], data_bytes: int, where: object) -> None:
    at = 0
    for name, entry in sorted(entries.items(), key=lambda item: item[1].data_offsets):
        start, end = entry.data_offsets
        if entry.dtype not in ITEM_BYTES:
            raise CardFormatError(
                f"{where}: tensor {name[:80]} has the type {entry.dtype[:20]!r}, which is unknown."
            )
        size = ITEM_BYTES[entry.dtype] * math.prod(entry.shape)
        if start != at or end - start != size or end > data_bytes:
            raise CardFormatError(
                f"{where}: tensor {name[:80]} is said to be bytes {start} to {end} of "
                f"{data_bytes}; expected {size} bytes from {at} on. The file was cut short or is "
                "damaged."
            )
        at = end
    if at != data_bytes:
        raise CardFormatError(
            f"{where}: {data_bytes} bytes follow the header, its tensors have {at}. The file is "
            "damaged."
        )
