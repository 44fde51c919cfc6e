"""BLAKE3 digests, always written as 64 lower-case hex digits.

With a *salt*, itself written so, BLAKE3 is keyed with its 32 bytes: nobody without the salt can
foretell or recognize the digests of known bytes. A card's own digests are taken so where it has
one; digests that others must find again (identities, profiles) never are.
"""

from __future__ import annotations

import re
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


def is_digest(text: str) -> bool:
    """Whether ``text`` is written as digests and salts are."""
    return re.fullmatch("[0-9a-f]{64}", text) is not None


def digest_bytes(data: bytes | Bytes, salt: str | None = None) -> str:
    """Digest of a run of bytes."""
    view: Any = np.frombuffer(data, np.uint8)
    threads = blake3.AUTO if view.nbytes >= _PARALLEL_FROM else 1
    if salt is None:
        return blake3(view, max_threads=threads).hexdigest()
    return blake3(view, key=bytes.fromhex(salt), max_threads=threads).hexdigest()


def digest_json(value: Any, salt: str | None = None) -> str:
    """Digest of a value's canonical JSON: UTF-8, keys sorted, no white space."""
    return digest_bytes(msgspec.json.encode(value, order="sorted"), salt)


def empty_chain(salt: str | None) -> str:
    """The digest chain over no token ids, where every chain starts."""
    return digest_bytes(b"", salt)


def extend_chain(chain: str, ids: Sequence[int] | TokenIds, salt: str | None) -> str:
    """The digest chain over token ids, one link a segment: digest(previous link's 32 bytes ‖ ids).

    ``ids`` are hashed as little-endian 32-bit integers, ``[tokens]``.
    """
    data = np.asarray(ids, dtype="<i4").tobytes()
    return digest_bytes(bytes.fromhex(chain) + data, salt)
