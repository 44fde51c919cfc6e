"""Make a card whose files are written visible: its rows in the index."""

from __future__ import annotations

import time

from ..card import CacheCard
from . import eviction
from .folder import Folder
from .index import Index
from .prefixes import Prefixes


def enter(
    index: Index,
    folder: Folder,
    card: CacheCard,
    ttl: float | None = None,
    saved_ms: float | None = None,
    vouched: bool = False,
) -> bool:
    """Enter ``card``; False where one of its files is not there. Within `Index.writing`.

    A card that is known keeps its uses. ``ttl`` in seconds; a card's own ``expires`` holds too.
    Only what is ``vouched`` for gets names by which prompts find it.
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
        _name(index, card)
    eviction.touch(index, digest)
    return True


def _name(index: Index, card: CacheCard) -> None:
    prefixes = Prefixes.of(card.token_ids, card.manifest.identity, card.manifest.salt)
    for segment in card.manifest.segments:
        end = segment.end
        place = prefixes.name(end), card.digest, prefixes.block(end), end
        index.run("INSERT OR IGNORE INTO prefix VALUES (?, ?, ?, ?)", *place)
