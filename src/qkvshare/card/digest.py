"""BLAKE3 digests, always written as 64 lower-case hex digits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
from blake3 import blake3

Bytes = npt.NDArray[np.uint8]
TokenIds = npt.NDArray[np.int32]

# Threads pay from about a megabyte on; below that their start costs more than the hash.
_PARALLEL_FROM = 1 << 20


def digest_bytes(data: bytes | Bytes) -> str:
    """Digest of a run of bytes."""
    view: Any = np.frombuffer(data, np.uint8)
    threads = blake3.AUTO if view.nbytes >= _PARALLEL_FROM else 1
    return blake3(view, max_threads=threads).hexdigest()


def digest_json(value: Any) -> str:
    """Digest of a value's canonical JSON: UTF-8, keys sorted, no white space."""
    return digest_bytes(msgspec.json.encode(value, order="sorted"))


EMPTY_CHAIN = digest_bytes(b"")


def extend_chain(chain: str, ids: Sequence[int] | TokenIds) -> str:
    """The digest chain over token ids, one link a segment: digest(previous link's 32 bytes ‖ ids).

    ``ids`` are hashed as little-endian 32-bit integers, ``[tokens]``.
    """
    data = np.asarray(ids, dtype="<i4").tobytes()
    return digest_bytes(bytes.fromhex(chain) + data)
