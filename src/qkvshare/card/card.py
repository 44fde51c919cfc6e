"""`CacheCard`: what is handed over."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path

import msgspec
import numpy as np

from . import container
from .container import Array, FileTensors, blob_name, ids_name
from .digest import EMPTY_CHAIN, Bytes, TokenIds, digest_bytes, extend_chain
from .errors import CardDigestError, CardExpiredError, CardFormatError, CardVersionError
from .manifest import FORMAT_VERSION, Envelope, Manifest, decode_envelope, decode_manifest


@dataclass(frozen=True, eq=False)
class CacheCard:
    """The KV cache of one sequence, encoded, with everything needed to use it safely.

    Immutable. Made by `qkvshare.capture` or `CacheCard.load`; used by `qkvshare.inject`.

    Attributes:
        manifest: the typed header.
        tensors: name to bytes, see `container.ids_name` and `container.blob_name`; read lazily
            where the card comes from a file. Use `token_ids` and `blob`, which verify.
    """

    manifest: Manifest
    tensors: Mapping[str, Array]

    @classmethod
    def load(cls, path: str | Path) -> CacheCard:
        """Open a card file: header and token ids are read and verified, the rest on demand.

        Raises `CardNotFoundError`, `CardFormatError`, `CardVersionError` or `CardDigestError`.
        """
        tensors = FileTensors(Path(path))
        manifest = _open_header(tensors)
        _check_tensors(tensors, manifest)
        card = cls(manifest, tensors)
        _ = card.token_ids  # verified now, so that a wrong prefix is never found too late
        return card

    def save(self, path: str | Path) -> Path:
        """Write the card atomically; readers see the old file or the whole new one.

        Raises `CardWriteError`, or `CardDigestError` rather than write damaged bytes. Returns
        the path.
        """
        target = Path(path)
        container.write(target, self.verify(), self._metadata())
        return target

    def __deepcopy__(self, _: object) -> CacheCard:
        """Immutable, so a copy of whatever refers to it may share it."""
        return self

    @property
    def tokens(self) -> int:
        """Number of tokens of context that the card stands for."""
        return self.manifest.tokens

    @cached_property
    def digest(self) -> str:
        """The card's name: digest of the manifest, which names every other byte by digest."""
        return digest_bytes(self.manifest.encode())

    @cached_property
    def token_ids(self) -> TokenIds:
        """The context's token ids, int32 ``[tokens]``, verified against the digest chain."""
        runs, chain = [], EMPTY_CHAIN
        for index, segment in enumerate(self.manifest.segments):
            ids: TokenIds = self.tensors[ids_name(index)]
            chain = extend_chain(chain, ids)
            if chain != segment.chain:
                raise CardDigestError(
                    f"the token ids of segment {index} are not those the card was made of: found "
                    f"chain {chain[:12]}…, expected {segment.chain[:12]}…. Get the card again."
                )
            runs.append(ids)
        joined = np.concatenate(runs)
        joined.flags.writeable = False
        return joined

    def blob(self, layer: int, segment: int) -> Bytes:
        """The encoded bytes of one layer in one segment, uint8 ``[bytes]``, verified.

        Raises `CardDigestError` where they are not what the manifest names.
        """
        data: Bytes = self.tensors[blob_name(layer, segment)]
        found, expected = digest_bytes(data), self.manifest.segments[segment].blobs[layer]
        if found != expected:
            raise CardDigestError(
                f"layer {layer} of segment {segment} is damaged: its bytes have digest "
                f"{found[:12]}…, expected {expected[:12]}…. Get the card again."
            )
        return data

    def verify(self) -> dict[str, Array]:
        """Read every byte and check it; returns all tensors. Raises `CardDigestError`."""
        checked: dict[str, Array] = {}
        for index, segment in enumerate(self.manifest.segments):
            checked[ids_name(index)] = self.token_ids[segment.start : segment.end]
            for layer in range(len(self.manifest.layers)):
                checked[blob_name(layer, index)] = self.blob(layer, index)
        return checked

    def require_fresh(self) -> None:
        """Raise `CardExpiredError` once the card's time has passed."""
        expires = self.manifest.expires
        if expires is not None and datetime.now(UTC) >= expires:
            raise CardExpiredError(f"the card expired at {expires}. Capture a new one.")

    @cached_property
    def header_bytes(self) -> int:
        """Bytes of the file before its tensors."""
        if isinstance(self.tensors, FileTensors):
            return self.tensors.header_bytes
        return container.header_bytes(self.tensors, self._metadata())

    @cached_property
    def blob_bytes(self) -> list[list[int]]:
        """Encoded bytes per layer and segment, ``[layers][segments]``, without reading them."""
        segments = range(len(self.manifest.segments))
        return [
            [self._nbytes(blob_name(layer, segment)) for segment in segments]
            for layer in range(len(self.manifest.layers))
        ]

    @property
    def nbytes(self) -> int:
        """Size of the card's file in bytes, everything counted, whether it is written or not."""
        return self.header_bytes + 4 * self.tokens + sum(map(sum, self.blob_bytes))

    @property
    def values(self) -> int:
        """Key and value entries of the context in all layers, those forgotten by windows too."""
        layers = self.manifest.layers
        return self.tokens * sum(at.kv_heads * (at.head_dim + at.v_head_dim) for at in layers)

    @property
    def bits_per_value(self) -> float:
        """8 × all bytes of the file ÷ number of values: the only size ever quoted."""
        return 8 * self.nbytes / self.values

    def _nbytes(self, name: str) -> int:
        if isinstance(self.tensors, FileTensors):
            return self.tensors.kind(name)[1][0]
        return self.tensors[name].nbytes

    def _metadata(self) -> dict[str, str]:
        # One entry only: safetensors does not keep the order of several, and a card's bytes
        # should depend on nothing but the card.
        envelope = Envelope(self.digest, msgspec.Raw(self.manifest.encode()), FORMAT_VERSION)
        return {container.MAGIC: msgspec.json.encode(envelope, order="sorted").decode()}


def _open_header(tensors: FileTensors) -> Manifest:
    """Magic, version, digest, manifest: in this order, so that each defect gets its own error."""
    path = tensors.path
    if set(tensors.metadata) != {container.MAGIC}:
        raise CardFormatError(
            f"{path} is a safetensors file but not a card: its metadata has "
            f"{sorted(tensors.metadata)[:5]}, expected {container.MAGIC!r} and nothing else."
        )
    envelope = decode_envelope(tensors.metadata[container.MAGIC].encode())
    if envelope.version != FORMAT_VERSION:
        raise CardVersionError(
            f"{path} has format version {envelope.version}, this package reads {FORMAT_VERSION}. "
            "Capture again, or use the package version that wrote it."
        )
    found = digest_bytes(bytes(envelope.manifest))
    if found != envelope.digest:
        raise CardDigestError(
            f"{path}: the manifest has digest {found[:12]}…, the card is named "
            f"{envelope.digest[:12]}…. The header is damaged; get the card again."
        )
    return decode_manifest(bytes(envelope.manifest))


def _check_tensors(tensors: FileTensors, manifest: Manifest) -> None:
    """Exactly the tensors that the manifest implies, each of the right type and shape."""
    expected: dict[str, tuple[str, int | None]] = {}
    for index, segment in enumerate(manifest.segments):
        expected[ids_name(index)] = ("I32", segment.end - segment.start)
        for layer in range(len(manifest.layers)):
            expected[blob_name(layer, index)] = ("U8", None)
    missing, extra = sorted(expected.keys() - tensors), sorted(tensors.keys() - expected.keys())
    if missing or extra:
        raise CardFormatError(
            f"{tensors.path}: tensors missing {missing[:3]}, not expected {extra[:3]}. "
            "The file is damaged or was assembled by hand."
        )
    for name, (dtype, length) in expected.items():
        found, shape = tensors.kind(name)
        if found != dtype or len(shape) != 1 or length not in (None, shape[0]):
            raise CardFormatError(
                f"{tensors.path}: tensor {name} is {found} {shape}, expected {dtype} "
                f"[{'bytes' if length is None else length}]."
            )
