"""Cards that are sealed: AES-256-GCM (NIST SP 800-38D) for every tensor of the file.

Each file has a key of its own, derived from the owner's and 32 random bytes, so that a tensor of
one file opens in no other and a nonce never returns; within a file a tensor opens only under its
name and in its place.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated

import msgspec
import numpy as np
from msgspec import Meta

from .container import MAGIC, Array, FileTensors, StoredTensors, require_short
from .errors import CardFormatError, CardKeyError, CardTagError, CardVersionError, CardWriteError
from .file_header import MAX_HEADER_BYTES
from .geometry import Strict
from .keys import Key
from .manifest import Digest

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

SEALED = "qkvshare.sealed"
SEAL_VERSION = 1
# Sorts before all others: a receiver needs it first.
ENVELOPE = "envelope"
TAG_BYTES = 16
_MOST = 2**31 - 1 - TAG_BYTES  # bytes that the cipher takes at once


class Seal(Strict, frozen=True):
    """What a sealed file says in the clear: which key, and this file's own 32 bytes."""

    key: Annotated[str, Meta(pattern=r"\A[0-9a-f]{16}\Z")]
    nonce: Digest
    version: int

    def cipher(self, key: Key) -> AESGCM:
        """The file's cipher."""
        secret = key.derive(b"qkvshare sealed 1", salt=bytes.fromhex(self.nonce))
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        return AESGCM(secret)


def seal(
    tensors: Mapping[str, Array], metadata: dict[str, str], key: Key
) -> tuple[dict[str, Array], dict[str, str]]:
    """Tensors and metadata of the sealed file for those of a plain one. Raises `CardWriteError`."""
    seal = Seal(key.id, secrets.token_bytes(32).hex(), SEAL_VERSION)
    cipher = seal.cipher(key)
    header = np.frombuffer(metadata[MAGIC].encode(), np.uint8)
    require_short(header.nbytes)
    sealed: dict[str, Array] = {}
    for position, name in enumerate(sorted([ENVELOPE, *tensors])):
        data = header if name == ENVELOPE else np.ascontiguousarray(tensors[name]).view(np.uint8)
        if data.nbytes > _MOST:
            raise CardWriteError(
                f"tensor {name} has {data.nbytes} bytes; at most {_MOST} can be sealed at once. "
                "Capture the context in several steps."
            )
        sealed[name] = np.empty(data.nbytes + TAG_BYTES, np.uint8)
        cipher.encrypt_into(
            position.to_bytes(12, "big"), data.data, name.encode(), sealed[name].data
        )
    return sealed, {SEALED: msgspec.json.encode(seal, order="sorted").decode()}


class SealedTensors(StoredTensors):
    """The tensors of a sealed file, opened one at a time; what does not pass is not returned."""

    def __init__(self, file: FileTensors, key: Key) -> None:
        self.path, self._file = file.path, file
        seal = _read_seal(file)
        if seal.key != key.id:
            raise CardKeyError(
                f"{file.path} is sealed with the key {seal.key}, the one at hand is {key.id}. "
                "Give the key it was sealed with."
            )
        self._positions = {name: position for position, name in enumerate(sorted(file))}
        for name in file:
            dtype, shape = file.kinds[name]
            unit = 4 if name.startswith("ids.") else 1
            if dtype != "U8" or len(shape) != 1 or shape[0] < TAG_BYTES or shape[0] % unit:
                raise CardFormatError(
                    f"{file.path}: tensor {name} is {dtype} {shape}, expected U8 [bytes + 16]. "
                    "The file is damaged or was assembled by hand."
                )
        if ENVELOPE not in file or _size(file, ENVELOPE) > MAX_HEADER_BYTES:
            raise CardFormatError(
                f"{file.path} has no sealed header of at most {MAX_HEADER_BYTES} bytes. "
                "It is damaged or was assembled by hand."
            )
        sizes = {name: _size(file, name) for name in file if name != ENVELOPE}
        self.kinds = {
            name: ("I32", [size // 4]) if name.startswith("ids.") else ("U8", [size])
            for name, size in sizes.items()
        }
        self._cipher = seal.cipher(key)
        self.header_bytes = file.header_bytes + _size(file, ENVELOPE) + TAG_BYTES * len(file)
        try:
            self.metadata = {MAGIC: self._open(ENVELOPE).tobytes().decode()}
        except UnicodeDecodeError as error:
            raise CardFormatError(f"{file.path}: its header is no text: {error}.") from error

    def __getitem__(self, name: str) -> Array:
        if name not in self:
            raise KeyError(name)
        return self._open(name).view("<i4" if self.kinds[name][0] == "I32" else np.uint8)

    def _open(self, name: str) -> Array:
        from cryptography.exceptions import InvalidTag

        data = np.empty(_size(self._file, name), np.uint8)
        nonce = self._positions[name].to_bytes(12, "big")
        try:
            self._cipher.decrypt_into(nonce, self._file[name].data, name.encode(), data.data)
        except InvalidTag as error:
            raise CardTagError(
                f"{self.path}: tensor {name} does not pass its check: it was damaged, or is "
                "another file's or another place's. Get the card again from who sealed it."
            ) from error
        return data


def open_file(file: FileTensors, key: Key | None) -> StoredTensors:
    """The tensors of a plain file, or with ``key`` of a sealed one; never the other kind.

    Raises `CardKeyError` for a sealed file without key, for another key, and for a plain file where
    a key was given: somebody may have put it in a sealed one's place.
    """
    sealed = SEALED in file.metadata
    if key is None and sealed:
        raise CardKeyError(f"{file.path} is sealed. Give its key: CacheCard.load(path, key=…).")
    if key is None:
        return file
    if not sealed:
        raise CardKeyError(
            f"{file.path} is not sealed, and a key was given. If you trust where it comes from, "
            "load it without the key; otherwise ask for the sealed card."
        )
    return SealedTensors(file, key)


def _read_seal(file: FileTensors) -> Seal:
    if set(file.metadata) != {SEALED}:
        raise CardFormatError(
            f"{file.path}: its metadata has {sorted(file.metadata)[:5]}, expected {SEALED!r} and "
            "nothing else."
        )
    try:
        seal = msgspec.json.decode(file.metadata[SEALED], type=Seal, strict=True)
    except (msgspec.DecodeError, RecursionError) as error:
        raise CardFormatError(
            f"{file.path}: its seal is not valid: {error}. Expected key, nonce and version."
        ) from error
    if seal.version != SEAL_VERSION:
        raise CardVersionError(
            f"{file.path} is sealed by version {seal.version}, this package reads {SEAL_VERSION}. "
            "Use the package version that wrote it."
        )
    return seal


def _size(file: FileTensors, name: str) -> int:
    """Bytes of a tensor before it was sealed."""
    return file.kinds[name][1][0] - TAG_BYTES
