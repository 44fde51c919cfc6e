"""The new card: what was before it, and one more segment.

Three ways to meet ``bits`` per value: a codec with tiers allocates them row by row, one with steps
is given the step that fits, and any other is narrowed.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

import numpy as np
from msgspec.structs import replace

from ...allocation import Lagrangian
from ...card import Allocation, CacheCard, Hop, Identity, Manifest, Segment
from ...card.container import Array, blob_name, ids_name
from ...card.digest import Bytes, digest_bytes, empty_chain, extend_chain
from ...card.errors import BudgetError
from ...card.manifest import LOWEST_SLOPE, runs_of
from ...codecs import Codec, Stepped, Tiered, Trimmable
from ...registry import label
from .allocate import Spending, least_bits, shapes_of, spend, spend_steps
from .state import State
from .steps import fit_step, sample_size

# Bits per number of the codes and what belongs to them, for tokens that come without ``bits``.
DEFAULT_BITS = 4.0
# Segments of fewer tokens have one blob for all layers: names and digests of blobs
# take as much as a token at 3 bits. Refinements are dropped layer by layer, so theirs stay apart.
_JOINED = 128


@dataclass(frozen=True)
class Before:
    """All of the new card but its last segment."""

    now: datetime
    identity: Identity
    lineage: list[Hop]
    segments: list[Segment]
    tensors: dict[str, Array]
    ttl: float | None
    salt: str | None

    @property
    def chain(self) -> str:
        """The token chain up to here."""
        return self.segments[-1].chain if self.segments else empty_chain(self.salt)

    def card(self, state: State, segment: Segment, new: dict[str, Array]) -> CacheCard:
        """The card with ``segment`` at its end."""
        lasting = None if self.ttl is None else self.now + timedelta(seconds=self.ttl)
        manifest = Manifest(
            created=self.now.replace(microsecond=0),
            expires=lasting,
            identity=self.identity,
            layers=state.layers,
            segments=[*self.segments, segment],
            lineage=self.lineage,
            salt=self.salt,
        )
        return CacheCard(manifest, self.tensors | new)


def encode_alike(
    state: State, start: int, before: Before, codec: Codec, bits: float | None
) -> CacheCard:
    """A codec without tiers: narrower and narrower until the card fits."""
    narrower: Codec | None = codec
    while narrower is not None:
        layers = state.for_codec(narrower, start)
        allocation = Allocation(budget=bits)
        segment, new = _segment(state, start, before, narrower, allocation, narrower.encode(layers))
        card = before.card(state, segment, new)
        if bits is None or card.bits_per_value <= bits:
            return card
        narrower = narrower.narrower()
    raise _impossible(bits, card.tokens, card.bits_per_value)


def encode_tiers(
    state: State, start: int, before: Before, codec: Tiered, how: Spending, bits: float | None
) -> CacheCard:
    """A codec with tiers: bits row by row, so that the finished card has ``bits`` per value."""
    assert how.allocator is not None
    shapes = shapes_of(state, start)
    scorer = how.scored_by
    allocation = Allocation(
        scorer=None if scorer is None else label(scorer),
        allocator=label(how.allocator),
        budget=bits,
        slope=LOWEST_SLOPE if isinstance(how.allocator, Lagrangian) else None,
    )
    # How large all but the codes will be is known from a card with nothing in its blobs. The sizes
    # stand in the header, so they are given as many digits as they can come to have.
    most = [at.kv_heads * at.tokens * (at.head_dim + at.v_head_dim) for at in shapes]
    hollow = [codec.overhead(at) + more for at, more in zip(shapes, most, strict=True)]
    blobs = (np.broadcast_to(np.uint8(0), size) for size in hollow)
    draft = before.card(
        state, *_segment(state, start, before, codec, allocation, blobs, digests=False)
    )
    fixed, least = draft.nbytes - sum(most), least_bits(state, start, codec)
    slope = None
    if bits is None:
        # Not a promise about the card: new tokens are encoded as finely as those before.
        slope, rate = _as_before(before, codec, allocation.allocator)
        room = int(rate * sum(most)) - 8 * sum(map(codec.overhead, shapes))
        room = max(room, least)
    else:
        room = int(bits * draft.values) - 8 * fixed
        if room < least:
            raise _impossible(bits, draft.tokens, (8 * fixed + least) / draft.values)
    spent = spend(state, start, codec, how, before.identity, room, slope)
    allocation = replace(allocation, slope=spent.slope)
    encoded = codec.encode(state.for_codec(codec, start), spent.bits)
    return before.card(state, *_segment(state, start, before, codec, allocation, encoded))


def _as_before(before: Before, codec: Codec, allocator: str) -> tuple[int | None, float]:
    """The slope of the last run that was encoded so, if any; and the last bits per value asked for.

    Slopes are comparable where worth is; and tokens that agents append a few at a time, the ones
    that the next agent looks at most, cost more than a context's average.
    """
    runs = [run for n, segment in enumerate(before.segments) for run in runs_of(n, segment)][::-1]
    alike = (
        run.allocation.slope
        for run in runs
        if run.codec.name == codec.name and run.allocation.allocator == allocator
    )
    asked = (run.allocation.budget for run in runs if run.allocation.budget is not None)
    return next(alike, None), next(asked, DEFAULT_BITS)


def encode_steps(
    state: State, start: int, before: Before, codec: Stepped, how: Spending, bits: float | None
) -> CacheCard:
    """A codec with steps: the finest step that ``bits`` per value allow, or the codec's own."""
    exponents = spend_steps(state, start, codec, how)
    assert how.scored_by is not None
    allocation = Allocation(scorer=label(how.scored_by), allocator=codec.allocation, budget=bits)

    def make(step: int) -> CacheCard:
        fitted = codec.at(step)
        blobs = fitted.encode(state.for_codec(codec, start), exponents=exponents)
        return before.card(state, *_segment(state, start, before, fitted, allocation, blobs))

    if bits is None:
        return make(codec.reference if codec.step is None else codec.step)
    nothing = (np.zeros(0, np.uint8) for _ in state.layers)
    draft = before.card(
        state, *_segment(state, start, before, codec.at(0), allocation, nothing, digests=False)
    )
    layers = sample_size(state, start, codec, exponents)
    room = bits * draft.values / 8
    return fit_step(make, lambda step: draft.nbytes + layers(step), _start(before, codec), room)


def _start(before: Before, codec: Stepped) -> int:
    """Where to look for a step first: at the last segment's, or the profile's own."""
    for segment in reversed(before.segments):
        if segment.codec.name == codec.name:
            return int(segment.codec.parameters["step"])
    return codec.reference


def _segment(
    state: State,
    start: int,
    before: Before,
    codec: Codec,
    allocation: Allocation,
    blobs: Iterable[Bytes],
    digests: bool = True,
) -> tuple[Segment, dict[str, Array]]:
    """One segment for the tokens from ``start`` on; a draft does without the blobs' digests."""
    ids, index, sizes = state.ids[start:], len(before.segments), None
    if len(ids) < _JOINED and not (isinstance(codec, Trimmable) and codec.refinements):
        whole = list(blobs)
        sizes, blobs = [len(blob) for blob in whole], [np.concatenate(whole)]
    tensors: dict[str, Array] = {ids_name(index): ids}
    names = []
    for number, blob in enumerate(blobs):
        tensors[blob_name(number, index)] = blob
        names.append(digest_bytes(blob, before.salt) if digests else before.chain)
    first = [max(start, state.first(number)) for number in range(len(state.layers))]
    segment = Segment(
        start=start,
        end=len(state.ids),
        prefix=before.chain,
        chain=extend_chain(before.chain, ids, before.salt),
        codec=codec.record(),
        allocation=allocation,
        blobs=names,
        first=first if any(at > start for at in first) else None,
        sizes=sizes,
    )
    return segment, tensors


def _impossible(bits: float | None, tokens: int, least: float) -> BudgetError:
    return BudgetError(
        f"{bits:g} bits per value cannot be met: the least for these {tokens} "
        f"tokens is {least:.3f}, header and scales included. "
        "Raise it or choose another codec."
    )
