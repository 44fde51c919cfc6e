"""A new card but for its last segment, and how that is put behind the others."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property
from itertools import chain

import numpy as np

from ...card import Allocation, CacheCard, Hop, Identity, Manifest, Segment, StateBits
from ...card.container import Array, blob_name, ids_name
from ...card.digest import Bytes, digest_bytes, empty_chain, extend_chain
from ...codecs import Codec, LayerKV, Shape, Trimmable
from ...codecs.states import encode_states
from ...codecs.tiered import SINKS
from .state import State

# Fewer tokens than this per sink, and sinks would eat what the others need.
_TOKENS_PER_SINK = 64
# Segments of fewer tokens have one blob for all layers: names and digests of blobs
# take as much as a token at 3 bits. Refinements are dropped layer by layer, so theirs stay apart.
_JOINED = 128


@dataclass(frozen=True)
class NewCard:
    """All of a new card but the bytes of its last segment.

    Attributes:
        state: what the model made of all tokens.
        start: the first token of the last segment.
        segments: those before it, from the parent.
        tensors: their bytes.
        state_bits: bits per number of recurrent states; None for all of their bytes.
    """

    state: State
    start: int
    created: datetime
    ttl: float | None
    identity: Identity
    lineage: list[Hop]
    segments: list[Segment]
    tensors: dict[str, Array]
    salt: str | None
    state_bits: StateBits | None

    @cached_property
    def state_blobs(self) -> list[Bytes]:
        """The encoded snapshot; none where the model keeps no states."""
        state = self.state
        if not state.states:
            return []
        return [encode_states(state.snapshot, state.states, self.state_bits)]

    @cached_property
    def first(self) -> list[int]:
        """The first of the new tokens that each layer still holds."""
        return [max(self.start, self.state.first(at)) for at in range(len(self.state.layers))]

    @cached_property
    def shapes(self) -> list[Shape]:
        """Geometry of what each layer holds of the new tokens."""
        end = len(self.state.ids)
        return [
            Shape.of(layer, end - first)
            for layer, first in zip(self.state.layers, self.first, strict=True)
        ]

    @property
    def sinks(self) -> int:
        """How many of the new tokens are attention sinks."""
        # A sliding layer that has forgotten the first tokens has its first cached ones treated so.
        return min(SINKS, len(self.state.ids) // _TOKENS_PER_SINK) if self.start == 0 else 0

    @property
    def values(self) -> int:
        """Key and value entries of all tokens in all layers, as `CacheCard.values`."""
        layers = self.state.layers
        return len(self.state.ids) * sum(
            at.kv_heads * (at.head_dim + at.v_head_dim) for at in layers
        )

    def layers(self, codec: Codec) -> Iterable[LayerKV]:
        """Keys and values of the new tokens, as ``codec`` takes them."""
        return self.state.for_codec(codec, self.start)

    def nbytes(self, codec: Codec, allocation: Allocation, sizes: Sequence[int]) -> int:
        """`CacheCard.context_bytes` of the card if the new layers had ``sizes`` bytes."""
        # A header names sizes and digests, whatever the bytes are: zeros stand for both.
        blobs = [np.broadcast_to(np.uint8(0), size) for size in sizes]
        return self.card(codec, allocation, blobs, hashed=False).context_bytes

    def card(
        self, codec: Codec, allocation: Allocation, blobs: Iterable[Bytes], hashed: bool = True
    ) -> CacheCard:
        """The card with the new tokens, encoded by ``codec`` to ``blobs``, at its end."""
        ids, index, sizes = self.state.ids[self.start :], len(self.segments), None
        blobs = chain(blobs, self.state_blobs)
        if len(ids) < _JOINED and not (isinstance(codec, Trimmable) and codec.refinements):
            apart = list(blobs)
            sizes, blobs = [len(blob) for blob in apart], [np.concatenate(apart)]
        tensors, digests = {**self.tensors, ids_name(index): ids}, []
        for number, blob in enumerate(blobs):
            tensors[blob_name(number, index)] = blob
            digests.append(digest_bytes(blob, self.salt) if hashed else "0" * 64)
        prefix = self.segments[-1].chain if self.segments else empty_chain(self.salt)
        segment = Segment(
            start=self.start,
            end=len(self.state.ids),
            prefix=prefix,
            chain=extend_chain(prefix, ids, self.salt),
            codec=codec.record(),
            allocation=allocation,
            blobs=digests,
            first=self.first if any(at > self.start for at in self.first) else None,
            sizes=sizes,
            state_bits=self.state_bits if self.state.states else None,
        )
        manifest = Manifest(
            created=self.created.replace(microsecond=0),
            expires=None if self.ttl is None else self.created + timedelta(seconds=self.ttl),
            identity=self.identity,
            layers=self.state.layers,
            segments=[*self.segments, segment],
            lineage=self.lineage,
            salt=self.salt,
            states=self.state.states,
        )
        return CacheCard(manifest, tensors)
