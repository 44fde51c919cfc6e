"""The manifest: the typed header of a card. docs/cachecard.md explains every field."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated

import msgspec
import numpy as np
from msgspec import Meta

from .digest import digest_bytes, digest_json
from .geometry import Count, Layer, StateBits, StateTensor, Strict
from .identity import Identity

FORMAT_VERSION = 1

LOWEST_SLOPE = -(2**15)  # 1/32 octave; also the longest to write
Slope = Annotated[int, Meta(ge=LOWEST_SLOPE, le=2**15 - 1)]
# Not "$", which would let a line end pass.
Digest = Annotated[str, Meta(pattern=r"\A[0-9a-f]{64}\Z")]
Name = Annotated[str, Meta(min_length=1, max_length=64)]
Text = Annotated[str, Meta(max_length=256)]
Time = Annotated[datetime, Meta(tz=True)]


class CodecRecord(Strict, frozen=True):
    """Which codec wrote a segment, and with what; ``profile`` is the digest of its calibration."""

    name: Name
    version: Count
    parameters: dict[Name, int | float | str]
    profile: Digest | None = None


class Allocation(Strict, frozen=True):
    """How bits were allocated; ``budget`` in bits per value of the whole card, None if not asked.

    ``slope``, in 1/32 octave: a row was given more bits while each of them lowered its weighted
    distortion by more than that. Tokens appended later are encoded alike at the same slope.
    """

    scorer: Name | None = None
    allocator: Name = "uniform"
    budget: float | None = None
    slope: Slope | None = None

    def __post_init__(self) -> None:
        """A whole number is written as it is read back, so that a header stays canonical."""
        if isinstance(self.budget, int):
            msgspec.structs.force_setattr(self, "budget", float(self.budget))


class PartRecord(Strict, frozen=True):
    """One of the runs that a compacted segment was made of, up to token ``end``.

    ``sizes[layer]`` are its bytes in the layer's blob, where the parts follow each other.
    """

    end: Count
    codec: CodecRecord
    allocation: Allocation
    sizes: list[Count]
    first: list[Count] | None = None


class Segment(Strict, frozen=True):
    """An encoded run of tokens ``[start, end)``, immutable; see `Manifest.names`.

    ``prefix`` and ``chain`` are the token digest chain before and after it, so a segment cannot be
    spliced behind another prefix. ``first[layer]`` is the first token that the layer still holds
    (sliding layers forget); None means ``start`` everywhere. ``blobs[layer]`` is the digest of the
    layer's encoded bytes; with ``sizes`` there is one blob for all layers, which has
    ``sizes[layer]`` bytes of each, one behind the other. A compacted segment has ``parts``; codec
    and allocation are then those of the last one.

    Where the manifest has ``states``, one more blob follows those of the layers: the states after
    token ``end - 1``, so that the last token can be read again. ``state_bits`` says how it is
    encoded, see `qkvshare.card.geometry`.
    """

    start: Count
    end: Count
    prefix: Digest
    chain: Digest
    codec: CodecRecord
    allocation: Allocation
    blobs: list[Digest]
    first: list[Count] | None = None
    sizes: list[Count] | None = None
    parts: Annotated[list[PartRecord], Meta(min_length=1, max_length=10_000)] | None = None
    state_bits: StateBits | None = None


@dataclass(frozen=True)
class Spans:
    """Where a part's bytes are in each layer's blob: ``spans[layer]``, made when it is asked for.

    A header can name millions of them, in two bytes each.
    """

    starts: np.ndarray[tuple[int], np.dtype[np.int64]]
    sizes: list[int]

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, layer: int) -> slice:
        start = int(self.starts[layer])
        return slice(start, start + self.sizes[layer])

    def __iter__(self) -> Iterator[slice]:
        return (self[layer] for layer in range(len(self)))


@dataclass(frozen=True)
class Run:
    """Tokens ``[start, end)`` that one codec wrote at once: a segment, or a part of one.

    ``spans[layer]`` is where its bytes are in the segment's blob, None for all of it.
    """

    segment: int
    start: int
    end: int
    codec: CodecRecord
    allocation: Allocation
    first: list[int] | None
    spans: Spans | None

    def held(self, layer: int) -> int:
        """Number of tokens whose keys and values layer ``layer`` holds in this run."""
        return self.end - (self.start if self.first is None else self.first[layer])


def runs_of(index: int, segment: Segment) -> Iterator[Run]:
    """The runs of segment ``index``, one after the other."""
    if segment.parts is None:
        whole = segment.start, segment.end, segment.codec, segment.allocation, segment.first
        yield Run(index, *whole, None)
        return
    start, at = segment.start, np.zeros(len(segment.parts[0].sizes), np.int64)
    for part in segment.parts:
        spans = Spans(at, part.sizes)
        yield Run(index, start, part.end, part.codec, part.allocation, part.first, spans)
        start, at = part.end, at + np.array(part.sizes, np.int64)


class Hop(Strict, frozen=True):
    """One hand-off: who added how many tokens to which card (None: read from scratch)."""

    hop: Count
    agent: Text
    tokens_added: Count
    parent: Digest | None = None


class Manifest(Strict, frozen=True):
    """The whole header. Times carry their zone; we write UTC (RFC 3339).

    With ``salt`` all digests of the card are keyed with it: chains, blobs, names, the card's own.
    Those in ``identity``, in codecs (of profiles) and of parents in ``lineage`` are others'.
    """

    created: Time
    identity: Identity
    layers: Annotated[list[Layer], Meta(max_length=4096)]
    segments: Annotated[list[Segment], Meta(min_length=1, max_length=10_000)]
    lineage: Annotated[list[Hop], Meta(min_length=1, max_length=10_000)]
    expires: Time | None = None
    salt: Digest | None = None
    states: Annotated[list[StateTensor], Meta(max_length=65_536)] = msgspec.field(
        default_factory=list
    )

    @property
    def names(self) -> list[str]:
        """Each segment's name: digest over its every field, hence over its ids and bytes."""
        return [digest_json(segment, self.salt) for segment in self.segments]

    @property
    def digest(self) -> str:
        """The card's name: every byte of the card is in it, by its own digest or as a field."""
        return digest_bytes(self.encode(), self.salt)

    @property
    def tokens(self) -> int:
        """Number of tokens of context that the card stands for."""
        return self.segments[-1].end

    @property
    def runs(self) -> list[Run]:
        """All segments' runs, in order."""
        return [run for n, segment in enumerate(self.segments) for run in runs_of(n, segment)]

    def snapshot(self, segment: Segment) -> list[StateTensor]:
        """What `state_blob` of ``segment`` has: ``states``, with their shapes at that place.

        Nobody uses the snapshot of a single token, which has the shapes after that token.
        """
        return [state.after(max(1, segment.end - 1)) for state in self.states]

    def encode(self) -> bytes:
        """Canonical JSON; the card digest is taken over exactly these bytes."""
        return msgspec.json.encode(self, order="sorted")


class Signature(Strict, frozen=True):
    """An Ed25519 signature of the card digest: who signed (public key), and the signature."""

    key: Digest
    value: Annotated[str, Meta(pattern=r"\A[0-9a-f]{128}\Z")]


class Envelope(Strict, frozen=True):
    """What the file's metadata holds: the manifest's exact bytes, and what they must be.

    ``thin``: the bytes of so many segments, from the first on, are not in this file.
    """

    digest: Digest
    manifest: msgspec.Raw
    version: int
    thin: Count = 0
    signature: Signature | None = None
