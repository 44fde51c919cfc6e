"""Put a card: write what is not there, or not whole, and make it visible."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress

from ..card import CacheCard
from ..card.container import blob_name
from ..card.errors import CardThinError, StoreError
from . import eviction
from .entering import enter
from .folder import Blobs, Folder
from .index import Index
from .room import Room, full


def put(
    card: CacheCard, room: Room, ttl: float | None, saved_ms: float | None, vouched: bool
) -> None:
    """Put ``card``. What `Store.put` says holds; so do its errors."""
    index, folder = room.index, room.folder
    index.require_writable()
    tensors = card.verified()
    held: dict[str, Blobs] = {}
    for number in range(card.thin, len(card.manifest.segments)):
        at = range(len(card.manifest.segments[number].blobs))
        blobs = {blob_name(layer, 0): tensors[blob_name(layer, number)] for layer in at}
        held[card.manifest.names[number]] = blobs
    absent = [blobs for name, blobs in held.items() if not folder.segment_path(name).exists()]
    room.make(folder.card_bytes(card) + sum(map(folder.segment_bytes, absent)))
    try:
        while True:
            _write(card, folder, held)
            with index.writing():
                entered = enter(index, folder, card, ttl, saved_ms, vouched)
                fits = not entered or room.settle(card.digest)
            if not fits:
                assert room.limit is not None
                raise full(room.limit, eviction.stored_bytes(index) + folder.card_bytes(card))
            if entered and index.in_place:
                return
            # Somebody removed a file in between, or the index: write it again.
    except BaseException:
        _discard(index, folder, card)
        raise


def _write(card: CacheCard, folder: Folder, held: Mapping[str, Blobs]) -> None:
    """Write the files that are not there or damaged. All that are there are read for it.

    Raises `CardThinError` and `CardWriteError`.
    """
    for name, segment in zip(card.manifest.names, card.manifest.segments, strict=True):
        if folder.has_segment(name, segment, card.manifest.salt):
            continue
        if name not in held:
            raise CardThinError(
                f"the thin card {card.digest[:12]}… needs the segment {name[:12]}…, which is "
                "damaged or not in this store. Put its parent first, or the whole card."
            )
        folder.write_segment(name, held[name])
    if not folder.has_card(card):
        folder.write_card(card)


def _discard(index: Index, folder: Folder, card: CacheCard) -> None:
    """Remove the card's files that no card in the index has: on a full disk they would stay."""
    with suppress(StoreError), index.writing():
        if index.row("SELECT 1 FROM card WHERE digest = ?", card.digest) is None:
            folder.card_path(card.digest).unlink(missing_ok=True)
        for name in card.manifest.names:
            if index.row("SELECT 1 FROM segment WHERE name = ?", name) is None:
                folder.segment_path(name).unlink(missing_ok=True)
