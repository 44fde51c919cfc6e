"""From a card's runs of tokens to layers of keys and values."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache, partial
from typing import Any

import torch

from ..card import CacheCard, Run
from ..card.container import Array, blob_name
from ..card.contents import Contents
from ..card.digest import Bytes
from ..card.errors import CardFormatError
from .ahead import at_once
from .base import leave
from .layers import LayerKV, Shape, empty
from .records import from_record
from .states import check_states

# Numbers for a byte; the least that codecs write for honest ones is some 0.1 bits a number. A
# receiver bounds what it decodes by its model; `check_numbers` has only the file's own size.
_MOST = 256
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def decode_runs(
    card: CacheCard,
    into: Callable[[Run], Iterable[LayerKV]] | None = None,
    then: Callable[[Any], None] = leave,
    begin: Callable[[], None] = lambda: None,
    elsewhere: bool = False,
    runs: Sequence[Run] | None = None,
) -> list[Iterator[LayerKV]]:
    """For each run of a card its layers in order, verified and decoded one by one.

    Keys are as the run's codec keeps them, see `Codec.pre_rope`.

    Args:
        card: whose runs.
        into: the targets of a run, as `Codec.decode` takes them; by default new memory.
        then: called with each decoded layer, as `Codec.decode` does.
        begin: called before the bytes of each layer are read; what it raises ends the decoding.
        elsewhere: layers are decoded on another device than the CPU. Then all bytes of a run are
            read and verified at once.
        runs: which to decode; by default all.

    Raises `CardError`.
    """
    # The parts of a compacted segment are in one blob, and are read side by side.
    shared = lru_cache(maxsize=4)(card.blob)

    def blobs(verified: Iterator[Bytes]) -> Iterator[Bytes]:
        for _ in card.manifest.layers:
            begin()
            yield next(verified)

    def layers_of(run: Run) -> Iterator[LayerKV]:
        verified = blobs_of(card, run, shared)
        if elsewhere and run.spans is None and card.manifest.segments[run.segment].sizes is None:
            layers = range(len(card.manifest.layers))
            verified = at_once(partial(card.blob, segment=run.segment), layers)
        targets = empty(shapes_of(card, run), dtype_of(card)) if into is None else into(run)
        yield from from_record(run.codec).decode(blobs(verified), targets, then)

    return [layers_of(run) for run in (card.manifest.runs if runs is None else runs)]


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


class _Verified(Contents):
    """A card whose tensors have been verified already."""

    def _blob(self, number: int, segment: int) -> Bytes:
        blob: Bytes = self.tensors[blob_name(number, segment)]
        return blob


def check_numbers(card: Contents, tensors: Mapping[str, Array]) -> None:
    """Raise unless ``tensors``, all of ``card``'s and verified, decode to finite numbers.

    Raises the `CardError` family, `CodecError` or `ProfileError`.
    """
    dtype, verified = dtype_of(card), _Verified(card.manifest, tensors)
    if card.manifest.states:
        check_states(verified)
    for run in card.manifest.runs:
        codec, shapes = from_record(run.codec), shapes_of(card, run)
        blobs = list(blobs_of(verified, run, verified.blob))
        numbers = sum(at.kv_heads * at.tokens * (at.head_dim + at.v_head_dim) for at in shapes)
        nbytes = sum(map(len, blobs))
        if numbers > _MOST * nbytes:
            raise CardFormatError(
                f"segment {run.segment} has {nbytes:,} bytes for {numbers:,} numbers; expected "
                f"at most {_MOST} numbers a byte. The card was assembled by hand."
            )
        codec.check(blobs, shapes, dtype)
