"""Put a card: write the files that are not there, or not whole, then enter it into the index."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from ..card import CacheCard
from ..card.errors import CardThinError, StoreError
from . import eviction
from .eviction import Capacity, full, require_number
from .folder import Blobs, Folder, own_segments, segment_bytes, without_segments
from .index import Index
from .pieces import Chunks
from .prefixes import Prefixes


def put(
    card: CacheCard,
    capacity: Capacity,
    salt: str | None,
    ttl: float | None,
    saved_ms: float | None,
    vouched: bool,
) -> None:
    """Put ``card``. What `Store.put` says holds; so do its errors."""
    index, folder = capacity.index, capacity.folder
    _require_salt(card, salt, folder.root)
    for name, number in (("ttl", ttl), ("saved_ms", saved_ms)):
        require_number(name, number)
    index.require_writable()
    own, header = own_segments(card), without_segments(card).nbytes
    absent = [blobs for name, blobs in own.items() if not folder.segment_path(name).exists()]
    capacity.make(header + sum(map(segment_bytes, absent)))
    try:
        while True:
            _write(card, folder, own)
            with index.writing():
                entered = enter(index, folder, card, ttl, saved_ms, vouched)
                fits = not entered or capacity.settle(card.digest)
            if not fits:
                assert capacity.limit is not None
                raise full(capacity.limit, eviction.stored_bytes(index) + header)
            if entered and index.in_place:
                return
            # Somebody removed a file in between, or the index: write it again.
    except BaseException:
        _discard(index, folder, card)
        raise


def enter(
    index: Index,
    folder: Folder,
    card: CacheCard,
    ttl: float | None = None,
    saved_ms: float | None = None,
    vouched: bool = False,
) -> bool:
    """Make a card whose files are written visible; False where one of them is not there.

    Within `Index.writing`. A card that is known keeps its uses. ``ttl`` in seconds; a card's own
    ``expires`` holds too. Only what is ``vouched`` for gets names by which prompts find it.
    """
    digest, names = card.digest, card.manifest.names
    paths = [folder.card_path(digest), *map(folder.segment_path, names)]
    if not all(path.exists() for path in paths):
        return False
    now = time.time()
    ends = [] if ttl is None else [now + ttl]
    if card.manifest.expires is not None:
        ends.append(card.manifest.expires.timestamp())
    cost = eviction.reading_ms(card.tokens) if saved_ms is None else saved_ms
    row = digest, card.manifest.lineage[-1].agent, card.tokens, paths[0].stat().st_size
    index.run(
        "INSERT INTO card (digest, agent, tokens, bytes, put_at, used_at, expires_at, saved_ms) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (digest) DO UPDATE SET put_at = "
        "excluded.put_at, expires_at = excluded.expires_at, saved_ms = excluded.saved_ms",
        *(*row, now, now, min(ends, default=None), cost),
    )
    for number, (name, path) in enumerate(zip(names, paths[1:], strict=True)):
        index.run("INSERT OR IGNORE INTO segment VALUES (?, ?)", name, path.stat().st_size)
        index.run("INSERT OR IGNORE INTO part VALUES (?, ?, ?)", digest, number, name)
    if vouched:
        prefixes = Prefixes.of(card.token_ids, card.manifest.identity, card.manifest.salt)
        for end in (segment.end for segment in card.manifest.segments):
            prefix = prefixes.name(end), digest, prefixes.block(end), end
            index.run("INSERT OR IGNORE INTO prefix VALUES (?, ?, ?, ?)", *prefix)
        chunks = Chunks.of(card.token_ids, card.manifest.identity, card.manifest.salt)
        for chunk, start in zip(chunks.names, chunks.starts, strict=False):
            index.run("INSERT OR IGNORE INTO piece VALUES (?, ?, ?)", chunk, digest, start)
    eviction.touch(index, digest)
    return True


def _write(card: CacheCard, folder: Folder, own: Mapping[str, Blobs]) -> None:
    """Write the files that are not there or damaged. All that are there are read for it.

    Raises `CardThinError` and `CardWriteError`.
    """
    for name, segment in zip(card.manifest.names, card.manifest.segments, strict=True):
        if folder.has_segment(name, segment, card.manifest.salt):
            continue
        if name not in own:
            raise CardThinError(
                f"the thin card {card.digest[:12]}… needs the segment {name[:12]}…, which is "
                "damaged or not in this store. Put its parent first, or the whole card."
            )
        folder.write_segment(name, own[name])
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


def _require_salt(card: CacheCard, salt: str | None, root: Path) -> None:
    """Raise `StoreError` unless the card's digests have the salt of the store in ``root``."""
    if card.manifest.salt != salt:
        raise StoreError(
            f"the card {card.digest[:12]}… has {'another' if card.manifest.salt else 'no'} salt, "
            f"cards in {root} have {'their own' if salt else 'none'}. Capture with "
            "salt=store.salt, or put card.salted(store.salt)."
        )
