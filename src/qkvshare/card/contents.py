"""What is in a card: verified as it is read, and measured without reading it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from importlib import import_module
from math import nan

import msgspec
import numpy as np

from .container import MAGIC, Array, StoredTensors, blob_name, header_bytes, ids_name, kind_of
from .digest import Bytes, TokenIds, digest_bytes, empty_chain, extend_chain
from .errors import CardDigestError, CardFormatError, CardThinError
from .geometry import state_nbytes
from .manifest import FORMAT_VERSION, Envelope, Manifest, Signature

# No vocabulary comes near; an id is looked up in tables.
MOST_IDS = 1 << 24


@dataclass(frozen=True, eq=False)
class Contents:
    """A manifest and the tensors it names.

    Attributes:
        manifest: the typed header.
        tensors: name to bytes, see `container.ids_name` and `container.blob_name`; read lazily
            where the card comes from a file. Use `token_ids` and `blob`, which verify.
        signature: of this very card, if any; only `CacheCard.load` with ``trust`` checks it.
        file: what the card was loaded from, if it was.
    """

    manifest: Manifest
    tensors: Mapping[str, Array]
    signature: Signature | None = None
    file: StoredTensors | None = field(default=None, repr=False)

    @property
    def tokens(self) -> int:
        """Number of tokens of context that the card stands for."""
        return self.manifest.tokens

    @cached_property
    def digest(self) -> str:
        """The card's name: digest of the manifest, which names every other byte by digest."""
        return self.manifest.digest

    @cached_property
    def thin(self) -> int:
        """How many segments, from the first on, this card names but does not hold; usually 0."""
        segments = range(len(self.manifest.segments))
        return next((at for at in segments if blob_name(0, at) in self.tensors), len(segments))

    @cached_property
    def token_ids(self) -> TokenIds:
        """The context's token ids, int32 ``[tokens]``, verified against the digest chain."""
        runs, salt, chain = [], self.manifest.salt, empty_chain(self.manifest.salt)
        for index, segment in enumerate(self.manifest.segments):
            ids: TokenIds = self.tensors[ids_name(index)]
            chain = extend_chain(chain, ids, salt)
            if chain != segment.chain:
                raise CardDigestError(
                    f"the token ids of segment {index} are not those the card was made of: found "
                    f"chain {chain[:12]}…, expected {segment.chain[:12]}…. Get the card again."
                )
            if ids.min() < 0 or ids.max() >= MOST_IDS:
                raise CardFormatError(
                    f"segment {index} has token ids from {ids.min()} to {ids.max()}; expected 0 to "
                    f"{MOST_IDS - 1}. The card was assembled by hand."
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
        sizes, layers = self.manifest.segments[segment].sizes, len(self.manifest.layers)
        if sizes is None:
            yield from (self._blob(at, segment) for at in range(layers))
        else:
            yield from np.split(self._blob(0, segment), np.cumsum(sizes)[:-1])[:layers]

    def state_blob(self, segment: int) -> Bytes:
        """The encoded states at the end of a segment of a card that has `Manifest.states`; see
        `Segment`. Verified; raises as `blob`."""
        return self.blob(len(self.manifest.layers), segment)

    def _blob(self, number: int, segment: int) -> Bytes:
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
            what = f"layer {number}" if number < len(self.manifest.layers) else "the state"
            raise CardDigestError(
                f"{what} of segment {segment} is damaged: its bytes have digest "
                f"{found[:12]}…, expected {expected[:12]}…. Get the card again."
            )
        return data

    def tensor(self, name: str) -> Array:
        """One of `tensors`, verified. Raises as `blob`."""
        kind, *numbers = name.split(".")
        if kind == "ids":
            segment = self.manifest.segments[int(numbers[0])]
            return self.token_ids[segment.start : segment.end]
        return self._blob(int(numbers[0]), int(numbers[1]))

    def verified(self) -> dict[str, Array]:
        """All tensors, every byte compared with its digest. Raises `CardDigestError`."""
        checked: dict[str, Array] = {}
        for index, segment in enumerate(self.manifest.segments):
            checked[ids_name(index)] = self.token_ids[segment.start : segment.end]
            for at in range(len(segment.blobs) if index >= self.thin else 0):
                checked[blob_name(at, index)] = self._blob(at, index)
        return checked

    def verify(self) -> dict[str, Array]:
        """Make sure that the card can be used: nothing is damaged or missing, and it decodes here.

        Needs no model. Returns what `verified` does. Raises the `CardError` family, also for a thin
        card, which is used together with its parent; `CodecError` for a codec that is unknown here;
        `ProfileError` where its profile is not at hand.
        """
        if self.thin:
            self._blob(0, 0)  # raises
        tensors = self.verified()
        # Codecs know cards. That a card knows no codec is what lets headers be read without torch.
        import_module("qkvshare.codecs.runs").check_numbers(self, tensors)
        return tensors

    @cached_property
    def header_bytes(self) -> int:
        """Bytes of the file that are not its tensors', with all that sealing added."""
        if self.file is not None:
            return self.file.header_bytes
        return header_bytes(self.tensors, self.metadata())

    @cached_property
    def blob_bytes(self) -> list[list[int]]:
        """Encoded bytes per layer and segment, ``[layers][segments]``, without reading them."""
        return [
            [self._nbytes(layer, segment) for segment in range(len(self.manifest.segments))]
            for layer in range(len(self.manifest.layers))
        ]

    @property
    def state_bytes(self) -> int:
        """Encoded bytes of all states in all segments; 0 for a model that keeps none."""
        segments = self.manifest.segments[self.thin :]
        manifest = self.manifest
        return sum(state_nbytes(manifest.snapshot(at), at.state_bits) for at in segments)

    @property
    def context_bytes(self) -> int:
        """Bytes of the file but for `state_bytes`: those that ``bits`` are of."""
        return self.header_bytes + 4 * self.tokens + sum(map(sum, self.blob_bytes))

    @property
    def nbytes(self) -> int:
        """Bytes of the file it was loaded from, or of the plain file it would be, all counted."""
        return self.context_bytes + self.state_bytes

    @property
    def values(self) -> int:
        """Key and value entries of the context in all layers, those forgotten by windows too."""
        layers = self.manifest.layers
        return self.tokens * sum(at.kv_heads * (at.head_dim + at.v_head_dim) for at in layers)

    @property
    def bits_per_value(self) -> float:
        """8 × all bytes of the file ÷ number of values: the only size ever quoted.

        States are apart: their size says nothing about the context. See `state_bytes`. A card of
        states alone has no values, and this is NaN.
        """
        return 8 * self.context_bytes / self.values if self.values else nan

    def _nbytes(self, layer: int, segment: int) -> int:
        if segment < self.thin:
            return 0
        sizes = self.manifest.segments[segment].sizes
        if sizes is not None:
            return sizes[layer]
        return kind_of(self.tensors, blob_name(layer, segment))[1][0]

    def metadata(self) -> dict[str, str]:
        """The file's metadata: the manifest, in its envelope."""
        # One entry only: safetensors does not keep the order of several, and a card's bytes
        # should depend on nothing but the card.
        raw = msgspec.Raw(self.manifest.encode())
        envelope = Envelope(self.digest, raw, FORMAT_VERSION, self.thin, self.signature)
        return {MAGIC: msgspec.json.encode(envelope, order="sorted").decode()}
