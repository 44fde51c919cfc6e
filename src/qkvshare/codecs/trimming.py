"""Cut a card to a lower rate: refinements are dropped, nothing is decoded, no model is needed."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import msgspec

from ..card import CacheCard
from ..card.container import blob_name
from ..card.digest import digest_bytes
from ..card.errors import BudgetError
from ..card.manifest import runs_of
from .kinds import Trimmable
from .layers import Shape
from .records import from_record


@dataclass(frozen=True)
class _Piece:
    """One refinement of one layer in one segment."""

    level: int
    layer: int
    segment: int
    nbytes: int


def trim(card: CacheCard, bits: float) -> CacheCard:
    """The card with as many refinements as ``bits`` per value of the whole file allow.

    The finest go first, in each of them the last layer first. What is left is byte for byte the
    same; the lineage names the card it came from. Compacted segments stay as they are. A card that
    fits is returned as it is. Raises `BudgetError` where the card without refinements is still
    larger, and `CardError`.
    """
    if not card.manifest.layers:
        raise BudgetError(
            f"the card cannot be trimmed to {bits:g} bits per value: it has states alone. Capture "
            "with a smaller state_bits=."
        )
    if card.bits_per_value <= bits:
        return card
    pieces = sorted(_pieces(card), key=lambda at: (-at.level, -at.layer, at.segment))
    saved, nbytes, values = 0, card.context_bytes, card.values
    for count, piece in enumerate(pieces, 1):
        saved += piece.nbytes
        if 8 * (nbytes - saved) > bits * values:
            continue
        smaller = _without(card, pieces[:count], bits)
        if smaller.bits_per_value <= bits:  # the header may have grown
            return smaller
    least = _without(card, pieces, bits).bits_per_value if pieces else card.bits_per_value
    raise BudgetError(
        f"the card cannot be trimmed to {bits:g} bits per value: without its {len(pieces)} "
        f"refinements it has {least:.3f}. Capture with a coarser base, as with codec "
        "'transform:refinements=1' and fewer bits."
    )


def _pieces(card: CacheCard) -> list[_Piece]:
    found = []
    for run in card.manifest.runs:
        if run.spans is not None or card.manifest.segments[run.segment].sizes is not None:
            continue  # the bytes of several runs, or layers, are in one blob
        codec, index = from_record(run.codec), run.segment
        if not isinstance(codec, Trimmable):
            continue
        for number, layer in enumerate(card.manifest.layers):
            sizes = codec.level_bytes(card.blob(number, index), Shape.of(layer, run.held(number)))
            found += [
                _Piece(level, number, index, size) for level, size in enumerate(sizes, 1) if size
            ]
    return found


def _without(card: CacheCard, dropped: list[_Piece], bits: float) -> CacheCard:
    # In each segment: of which layers how many refinements stay. The finest come first.
    keep: dict[int, dict[int, int]] = defaultdict(dict)
    for piece in dropped:
        keep[piece.segment][piece.layer] = piece.level - 1
    tensors, manifest = card.verified(), card.manifest
    segments = list(manifest.segments)
    for index, layers in keep.items():
        segment = segments[index]
        codec, blobs = from_record(segment.codec), list(segment.blobs)
        assert isinstance(codec, Trimmable)  # its refinements were counted
        for layer, levels in layers.items():
            shape = Shape.of(manifest.layers[layer], next(runs_of(index, segment)).held(layer))
            name = blob_name(layer, index)
            tensors[name] = codec.drop(tensors[name], shape, levels)
            blobs[layer] = digest_bytes(tensors[name], manifest.salt)
        allocation = msgspec.structs.replace(segment.allocation, budget=bits)
        segments[index] = msgspec.structs.replace(segment, blobs=blobs, allocation=allocation)
    return card.child(segments, tensors, "trim")
