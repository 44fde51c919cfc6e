"""The manifest: the typed header of a card. docs/cachecard.md explains every field."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from .digest import EMPTY_CHAIN, digest_json
from .errors import CardDigestError, CardFormatError
from .identity import Identity

FORMAT_VERSION = 1

Count = Annotated[int, Meta(ge=0, le=2**31 - 1)]
Size = Annotated[int, Meta(ge=1, le=2**20)]
Digest = Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
Name = Annotated[str, Meta(min_length=1, max_length=64)]
Text = Annotated[str, Meta(max_length=256)]
Time = Annotated[datetime, Meta(tz=True)]


class Strict(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Unknown fields are errors: a reader that guesses is a reader that corrupts."""


class Layer(Strict, frozen=True):
    """Geometry of one attention layer; ``window`` in tokens, for sliding layers only."""

    kind: Literal["full", "sliding"]
    kv_heads: Size
    head_dim: Size
    v_head_dim: Size
    window: Annotated[int, Meta(ge=2, le=2**31 - 1)] | None = None


class Codec(Strict, frozen=True):
    """Which codec wrote a segment, and with what; ``profile`` is the digest of its calibration."""

    name: Name
    version: Count
    parameters: dict[Name, int | float | str]
    profile: Digest | None = None


class Allocation(Strict, frozen=True):
    """How bits were spent; ``budget`` in bits per value of the finished card, None if not asked."""

    scorer: Name | None = None
    allocator: Name = "uniform"
    budget: float | None = None


class Segment(Strict, frozen=True):
    """An encoded run of tokens ``[start, end)``, immutable and named by its digest.

    ``prefix`` and ``chain`` are the token digest chain before and after it, so a segment cannot be
    spliced behind another prefix. ``first[layer]`` is the first token that the layer still holds
    (sliding layers forget); None means ``start`` everywhere. ``blobs[layer]`` is the digest of the
    layer's encoded bytes.
    """

    start: Count
    end: Count
    prefix: Digest
    chain: Digest
    codec: Codec
    allocation: Allocation
    blobs: list[Digest]
    first: list[Count] | None = None

    @property
    def digest(self) -> str:
        """Digest over every field, hence over ids (by the chain) and bytes (by the blobs)."""
        return digest_json(self)

    def held(self, layer: int) -> int:
        """Number of tokens whose keys and values layer ``layer`` holds in this segment."""
        return self.end - (self.start if self.first is None else self.first[layer])


class Hop(Strict, frozen=True):
    """One hand-off: who added how many tokens to which card (None: read from scratch)."""

    hop: Count
    agent: Text
    tokens_added: Count
    parent: Digest | None = None


class Manifest(Strict, frozen=True):
    """The whole header. Times carry their zone; we write UTC (RFC 3339)."""

    created: Time
    identity: Identity
    layers: Annotated[list[Layer], Meta(min_length=1, max_length=4096)]
    segments: Annotated[list[Segment], Meta(min_length=1, max_length=10_000)]
    lineage: Annotated[list[Hop], Meta(min_length=1, max_length=10_000)]
    expires: Time | None = None

    @property
    def tokens(self) -> int:
        """Number of tokens of context that the card stands for."""
        return self.segments[-1].end

    def encode(self) -> bytes:
        """Canonical JSON; the card digest is taken over exactly these bytes."""
        return msgspec.json.encode(self, order="sorted")


class Envelope(Strict, frozen=True):
    """What the file's metadata holds: the manifest's exact bytes, and what they must be."""

    digest: Digest
    manifest: msgspec.Raw
    version: int


def decode_envelope(data: bytes) -> Envelope:
    """Parse the metadata entry of a card. Raises `CardFormatError`."""
    try:
        return msgspec.json.decode(data, type=Envelope, strict=True)
    except (msgspec.DecodeError, RecursionError) as error:
        raise CardFormatError(
            f"the card's header is not valid: {error}. Expected digest, manifest and version."
        ) from error


def decode_manifest(data: bytes) -> Manifest:
    """Parse and check a manifest's JSON. Raises `CardFormatError` or `CardDigestError`."""
    try:
        manifest = msgspec.json.decode(data, type=Manifest, strict=True)
    except (msgspec.DecodeError, RecursionError) as error:
        raise CardFormatError(
            f"the manifest is not valid: {error}. Expected the fields of docs/cachecard.md; "
            "the file is damaged or was written by something else."
        ) from error
    check_segments(manifest)
    return manifest


def check_segments(manifest: Manifest) -> None:
    """Segments must follow each other without gap, overlap or foreign prefix."""
    for number, layer in enumerate(manifest.layers):
        if (layer.kind == "sliding") != (layer.window is not None):
            raise CardFormatError(f"layer {number} is {layer.kind} with window {layer.window}.")
    end, chain = 0, EMPTY_CHAIN
    layers = len(manifest.layers)
    for index, segment in enumerate(manifest.segments):
        where = f"segment {index}, tokens [{segment.start}, {segment.end})"
        if segment.start != end or segment.end <= segment.start:
            raise CardFormatError(f"{where}: expected a run that starts at token {end}.")
        if segment.prefix != chain:
            raise CardDigestError(
                f"{where} was encoded behind another prefix: it names {segment.prefix[:12]}…, "
                f"the tokens before it have {chain[:12]}…. Segments cannot be mixed between cards."
            )
        if len(segment.blobs) != layers:
            raise CardFormatError(f"{where}: {len(segment.blobs)} blobs for {layers} layers.")
        _check_first(segment, manifest.layers, where)
        end, chain = segment.end, segment.chain


def _check_first(segment: Segment, layers: list[Layer], where: str) -> None:
    if segment.first is None:
        return
    if len(segment.first) != len(layers):
        raise CardFormatError(f"{where}: {len(segment.first)} firsts for {len(layers)} layers.")
    for number, (first, layer) in enumerate(zip(segment.first, layers, strict=True)):
        # A sliding layer may forget what no later token can see; a full layer nothing.
        latest = segment.start
        if layer.kind == "sliding":
            latest = max(segment.start, segment.end - (layer.window or 2) + 1)
        if not segment.start <= first <= latest:
            raise CardFormatError(
                f"{where}: layer {number} ({layer.kind}) starts at token {first}, "
                f"expected {segment.start} to {latest}."
            )
