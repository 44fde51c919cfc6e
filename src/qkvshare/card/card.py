"""`CacheCard`: what is handed over."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path

import msgspec
import numpy as np

from . import container
from .compacting import merge
from .container import Array, FileTensors, blob_name, ids_name
from .digest import Bytes, TokenIds, digest_bytes, empty_chain, extend_chain
from .errors import CardDigestError, CardError, CardExpiredError, CardThinError
from .manifest import FORMAT_VERSION, Envelope, Hop, Manifest, Segment
from .opening import check_tensors, open_header
from .salting import resalt


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
        manifest, thin = open_header(tensors)
        check_tensors(tensors, manifest, thin)
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

    def to_bytes(self) -> bytes:
        """The file that `save` would write. Raises `CardDigestError`."""
        return container.to_bytes(self.verify(), self._metadata())

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
        return self.manifest.digest

    @cached_property
    def token_ids(self) -> TokenIds:
        """The context's token ids, int32 ``[tokens]``, verified against the digest chain."""
        runs, salt = [], self.manifest.salt
        chain = empty_chain(salt)
        for index, segment in enumerate(self.manifest.segments):
            ids: TokenIds = self.tensors[ids_name(index)]
            chain = extend_chain(chain, ids, salt)
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

        Raises `CardDigestError` where they are not what the manifest names, `CardThinError` where
        they are not in this card.
        """
        sizes = self.manifest.segments[segment].sizes
        if sizes is None:
            return self._blob(layer, segment)
        start = sum(sizes[:layer])
        return self._blob(0, segment)[start : start + sizes[layer]]

    def blobs(self, segment: int) -> Iterator[Bytes]:
        """`blob` of one layer after the other; what they share is read and verified once."""
        sizes = self.manifest.segments[segment].sizes
        if sizes is None:
            yield from (self._blob(at, segment) for at in range(len(self.manifest.layers)))
            return
        whole, start = self._blob(0, segment), 0
        for size in sizes:
            yield whole[start : start + size]
            start += size

    def _blob(self, number: int, segment: int) -> Bytes:
        """A tensor's bytes, verified."""
        if segment < self.thin:
            raise CardThinError(
                f"the card is thin: the bytes of its first {self.thin} segments (tokens up to "
                f"{self.manifest.segments[self.thin - 1].end}) are not in it. Put it together "
                "with its parent: card.whole(parent)."
            )
        data: Bytes = self.tensors[blob_name(number, segment)]
        found = digest_bytes(data, self.manifest.salt)
        expected = self.manifest.segments[segment].blobs[number]
        if found != expected:
            raise CardDigestError(
                f"layer {number} of segment {segment} is damaged: its bytes have digest "
                f"{found[:12]}…, expected {expected[:12]}…. Get the card again."
            )
        return data

    def verify(self) -> dict[str, Array]:
        """Read every byte and check it; returns all tensors. Raises `CardDigestError`."""
        checked: dict[str, Array] = {}
        for index, segment in enumerate(self.manifest.segments):
            checked[ids_name(index)] = self.token_ids[segment.start : segment.end]
            for at in range(len(segment.blobs) if index >= self.thin else 0):
                checked[blob_name(at, index)] = self._blob(at, index)
        return checked

    def require_fresh(self) -> None:
        """Raise `CardExpiredError` once the card's time has passed."""
        expires = self.manifest.expires
        if expires is not None and datetime.now(UTC) >= expires:
            raise CardExpiredError(f"the card expired at {expires}. Capture a new one.")

    @cached_property
    def thin(self) -> int:
        """How many segments, from the first on, this card names but does not hold; usually 0."""
        segments = range(len(self.manifest.segments))
        return next((at for at in segments if blob_name(0, at) in self.tensors), len(segments))

    def fork(self, agent: str = "") -> CacheCard:
        """A child for one of several receivers: the same segments and bytes, one more hop."""
        return self._reshaped(self.manifest.segments, self.tensors, agent)

    def without(self, parent: CacheCard) -> CacheCard:
        """The same card without the bytes that ``parent`` has: a thin card, of the same digest.

        For a receiver who has the parent; ids stay. Raises `CardError` for a card that does not
        begin with the parent's segments.
        """
        shared = len(parent.manifest.segments)
        if self.manifest.segments[:shared] != parent.manifest.segments:
            raise CardError(
                f"the card does not begin with the {shared} segments of the parent "
                f"{parent.digest[:12]}…{self._salts(parent)}; expected a card that was captured "
                "from it."
            )
        gone = {name for n in range(shared) for name in self._blob_names(n)}
        kept = {name: self.tensors[name] for name in self.tensors if name not in gone}
        return CacheCard(self.manifest, kept)

    def whole(self, parent: CacheCard) -> CacheCard:
        """A thin card with the bytes it lacks taken from ``parent``, checked when they are read.

        Raises `CardThinError` where the parent does not have them.
        """
        lacking = self.manifest.segments[: self.thin]
        if parent.manifest.segments[: self.thin] != lacking or parent.thin:
            raise CardThinError(
                f"the card {parent.digest[:12]}… does not have the {self.thin} segments that the "
                f"thin card lacks{self._salts(parent)}. Expected the card it was made thin "
                "against, or a longer one."
            )
        taken = [name for n in range(self.thin) for name in self._blob_names(n)]
        tensors = {**{name: parent.tensors[name] for name in taken}, **self.tensors}
        return CacheCard(self.manifest, tensors)

    def head(self, tokens: int) -> CacheCard:
        """A child with the first ``tokens`` tokens, for a prompt that goes on otherwise from there.

        Raises `CardError` unless a segment ends there.
        """
        ends = [segment.end for segment in self.manifest.segments]
        if tokens not in ends:
            raise CardError(
                f"the card cannot be cut after {tokens} tokens; its segments end after "
                f"{', '.join(map(str, ends[:10]))}. Nothing is encoded again, so cut there."
            )
        kept = ends.index(tokens) + 1
        names = [name for n in range(kept) for name in (ids_name(n), *self._blob_names(n))]
        tensors = {name: self.tensors[name] for name in names if name in self.tensors}
        return self._reshaped(self.manifest.segments[:kept], tensors, "head")

    def _salts(self, parent: CacheCard) -> str:
        """The reason where it is this one, for a message."""
        return ", which has another salt" if parent.manifest.salt != self.manifest.salt else ""

    def compact(self) -> CacheCard:
        """All segments as one: a smaller header; bytes are moved, nothing is encoded again.

        The segment has another name than those it was made of, so a receiver who has them cannot
        use them for it. Raises `CardThinError`.
        """
        segment, tensors = merge(self.manifest, self.token_ids, self.blob)
        return self._reshaped([segment], tensors, "compact")

    def salted(self, salt: str | None) -> CacheCard:
        """The same card for another tenant: every digest of its own is taken anew under ``salt``.

        ``salt``: 64 hex digits; None for none. Bytes stay and are verified, nothing is decoded; the
        lineage names parents as they were. Raises `CardError` for what is no salt, `CardThinError`.
        """
        if self.thin:
            self._blob(0, 0)  # raises: digests of bytes that are elsewhere cannot be taken
        checked = self.verify()
        return CacheCard(resalt(self.manifest, checked, salt), checked)

    def _reshaped(
        self, segments: list[Segment], tensors: Mapping[str, Array], agent: str
    ) -> CacheCard:
        lineage = self.manifest.lineage
        hop = Hop(hop=len(lineage), agent=agent, tokens_added=0, parent=self.digest)
        manifest = msgspec.structs.replace(
            self.manifest,
            created=datetime.now(UTC).replace(microsecond=0),
            segments=segments,
            lineage=[*lineage, hop],
        )
        return CacheCard(manifest, tensors)

    @cached_property
    def header_bytes(self) -> int:
        """Bytes of the file before its tensors."""
        if isinstance(self.tensors, FileTensors):
            return self.tensors.header_bytes
        return container.header_bytes(self.tensors, self._metadata())

    @cached_property
    def blob_bytes(self) -> list[list[int]]:
        """Encoded bytes per layer and segment, ``[layers][segments]``, without reading them."""
        return [
            [self._nbytes(layer, segment) for segment in range(len(self.manifest.segments))]
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

    def _blob_names(self, segment: int) -> list[str]:
        return [blob_name(at, segment) for at in range(len(self.manifest.segments[segment].blobs))]

    def _nbytes(self, layer: int, segment: int) -> int:
        if segment < self.thin:
            return 0
        sizes = self.manifest.segments[segment].sizes
        if sizes is not None:
            return sizes[layer]
        return container.kind_of(self.tensors, blob_name(layer, segment))[1][0]

    def _metadata(self) -> dict[str, str]:
        # One entry only: safetensors does not keep the order of several, and a card's bytes
        # should depend on nothing but the card.
        raw = msgspec.Raw(self.manifest.encode())
        envelope = Envelope(self.digest, raw, FORMAT_VERSION, self.thin)
        return {container.MAGIC: msgspec.json.encode(envelope, order="sorted").decode()}
