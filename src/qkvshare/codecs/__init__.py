"""Codecs by name, and the way between a card's segments and layers.

A new codec is one file here and one line in `CODECS`, or an entry point of the group
``qkvshare.codecs`` in another package.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import fields, replace
from functools import lru_cache, partial
from typing import Any

import msgspec
import torch

from ..card import CacheCard, Run
from ..card import Codec as CodecRecord
from ..card.contents import Contents
from ..card.digest import Bytes
from ..card.errors import CardFormatError, CardVersionError, CodecError
from ..kernels.ahead import at_once
from ..profile import Profile
from ..registry import build, find
from .base import Codec, LayerKV, Shape, empty, leave
from .bits import BitMap, Energy, LayerBits
from .kivi import Kivi
from .packed import Packed
from .raw import Raw
from .transform import Transform
from .trimming import trim
from .uniform import Uniform

__all__ = [
    "CODECS",
    "BitMap",
    "Codec",
    "Energy",
    "Kivi",
    "LayerBits",
    "LayerKV",
    "Packed",
    "Raw",
    "Shape",
    "Transform",
    "Uniform",
    "decode_runs",
    "default_codec",
    "dtype_of",
    "empty",
    "find_codec",
    "from_record",
    "make_codec",
    "shapes_of",
    "trim",
]

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
CODECS: dict[str, type[Codec]] = {
    codec.name: codec for codec in (Raw, Uniform, Kivi, Packed, Transform)
}


def find_codec(name: str) -> type[Codec]:
    """The codec class registered as ``name``. Raises `CodecError` with the names there are."""
    return find(name, Codec, CODECS, "codec", CodecError)  # type: ignore[type-abstract]


def make_codec(text: str, profile: Profile | None = None) -> Codec:
    """From ``name`` or ``name:field=value,…``; `Transform` with ``profile`` if given.

    Raises `CodecError`.
    """
    codec = build(text, find_codec, CodecError)
    if isinstance(codec, Transform) and profile is not None:
        return replace(codec, profile=profile.keep())
    return codec


def default_codec(weights: str, profile: Profile | None = None) -> Codec:
    """For a card that goes to a file: `Transform` where a profile is given or at hand."""
    if profile is not None and profile.has_basis:
        return Transform.of(profile)
    at_hand = Profile.at_hand(weights)
    return Packed() if at_hand is None else Transform.of(at_hand)


def from_record(record: CodecRecord) -> Codec:
    """The codec that a manifest describes. Raises `CodecError` or the `CardError` family."""
    kind = find_codec(record.name)
    if record.version != kind.version:
        raise CardVersionError(
            f"the card was written by {record.name!r} version {record.version}, this package "
            f"reads version {kind.version}. Capture again, or use the package that wrote it."
        )
    given: dict[str, object] = dict(record.parameters)
    if record.profile is not None:
        given["profile"] = record.profile
    known = {field.name for field in fields(kind)}  # type: ignore[arg-type]
    # A profile among the parameters could be any text, a path too; beside them it is a digest.
    if set(given) != known or "profile" in record.parameters:
        raise CardFormatError(
            f"codec {record.name!r} has parameters {sorted(record.parameters)[:8]} and profile "
            f"{record.profile}, expected {sorted(known)}, with the profile beside the parameters."
        )
    try:
        return msgspec.convert(given, kind, strict=True)
    except (msgspec.ValidationError, TypeError) as error:
        raise CardFormatError(f"codec {record.name!r}: bad parameters: {error}.") from error


def decode_runs(
    card: CacheCard,
    into: Callable[[Run], Iterable[LayerKV]] | None = None,
    then: Callable[[Any], None] = leave,
    read: Callable[[], None] = lambda: None,
    begin: Callable[[], None] = lambda: None,
    elsewhere: bool = False,
) -> list[Iterator[LayerKV]]:
    """For each run of a card its layers in order, verified and decoded one by one.

    ``into`` says where to, in the card's dtype, and ``then`` what is done with it, as
    `Codec.decode` takes them; by default new memory. Keys are as the run's codec keeps them: see
    `Codec.pre_rope`. ``read`` is called whenever all bytes of a run have been read and verified,
    which is before the codec hands out its last layer; ``begin`` before the bytes of each layer
    are, and what it raises ends the decoding. Where layers are decoded ``elsewhere`` than
    on this processor, it begins to verify all of a run before ``into`` is asked. Raises
    `CardError`.
    """
    # The parts of a compacted segment are in one blob, and are read side by side.
    shared = lru_cache(maxsize=4)(card.blob)

    def blobs(verified: Iterator[Bytes]) -> Iterator[Bytes]:
        for _ in card.manifest.layers:
            begin()
            yield next(verified)
        read()

    def layers_of(run: Run) -> Iterator[LayerKV]:
        verified = blobs_of(card, run, shared)
        if elsewhere and run.spans is None and card.manifest.segments[run.segment].sizes is None:
            layers = range(len(card.manifest.layers))
            verified = at_once(partial(card.blob, segment=run.segment), layers)
        room = empty(shapes_of(card, run), dtype_of(card)) if into is None else into(run)
        yield from from_record(run.codec).decode(blobs(verified), room, then)

    return [layers_of(run) for run in card.manifest.runs]


def blobs_of(card: Contents, run: Run, shared: Callable[[int, int], Bytes]) -> Iterator[Bytes]:
    """The bytes of each layer of ``run``, verified; what layers or runs share is read once.

    ``shared`` is the card's `Contents.blob` with a memory, for runs that are read side by side.
    """
    if run.spans is None:
        yield from card.blobs(run.segment)
    else:
        yield from (shared(at, run.segment)[span] for at, span in enumerate(run.spans))


def shapes_of(card: Contents, run: Run) -> list[Shape]:
    """Geometry of what each layer holds of ``run``."""
    layers = card.manifest.layers
    return [Shape.of(at, run.held(number)) for number, at in enumerate(layers)]


def dtype_of(card: Contents) -> torch.dtype:
    """The number format of the cache the card was made of."""
    name = card.manifest.identity.dtype
    if name not in DTYPES:
        raise CardFormatError(f"the card has dtype {name!r}; expected one of {sorted(DTYPES)}.")
    return DTYPES[name]
