"""Questions to the index: what is there, and what of it begins like a prompt."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from os.path import exists
from sqlite3 import Row

from ..card.errors import CardError, CardNotFoundError
from .folder import Folder
from .index import Index
from .pieces import Chunks, Excerpt, lengthen
from .prefixes import Prefixes

# Bytes of card ``c``: its own file, and each segment's shared evenly by those who have it.
OWN_BYTES = (
    "(c.bytes + coalesce((SELECT sum(s.bytes * 1.0 / (SELECT count(*) FROM part o WHERE "
    "o.segment = s.name)) FROM part p JOIN segment s ON s.name = p.segment "
    "WHERE p.card = c.digest), 0))"
)
_HEX = re.compile("[0-9a-f]{4,64}")
_ALIVE = "(c.expires_at IS NULL OR c.expires_at > ?)"


@dataclass(frozen=True)
class Match:
    """The longest stored prefix of a prompt: the first ``tokens`` tokens of ``card`` (a digest)."""

    card: str
    tokens: int


@dataclass(frozen=True)
class Entry:
    """What the store says of a card; times in seconds since 1970.

    ``bytes`` are the card's own file and its share of segments that other cards have too.
    """

    digest: str
    agent: str
    tokens: int
    bytes: int
    put_at: float
    used_at: float
    expires_at: float | None
    hits: int


# On a full disk a card can be removed whose row cannot: such rows are passed over. Of those that
# answer a question, so many are asked for.
_SOME = 8
_LEAST = 32  # tokens of a piece: to move fewer is not worth reading a card


def _there(folder: Folder, rows: Iterable[Row]) -> list[Row]:
    """Those of ``rows`` whose cards have files."""
    return [row for row in rows if exists(folder.card_path(row["digest"]))]


def entries(index: Index, folder: Folder) -> list[Entry]:
    """All cards that have not expired, the last used first."""
    rows = index.rows(
        f"SELECT digest, agent, tokens, CAST({OWN_BYTES} AS INTEGER) AS bytes, put_at, used_at, "
        f"expires_at, hits FROM card c WHERE {_ALIVE} ORDER BY used_at DESC",
        time.time(),
    )
    return [Entry(**dict(row)) for row in _there(folder, rows)]


def stats(index: Index) -> dict[str, int]:
    """Counts and bytes: of all files, and of what the same cards would take by themselves."""
    (row,) = index.rows(
        "SELECT (SELECT count(*) FROM card) cards, (SELECT count(*) FROM segment) segments, "
        "(SELECT bytes FROM total) bytes, (SELECT coalesce(sum(bytes), 0) FROM card) + "
        "(SELECT coalesce(sum(s.bytes), 0) FROM part p JOIN segment s ON s.name = p.segment) "
        "bytes_unshared, (SELECT coalesce(sum(hits), 0) FROM card) hits, "
        "(SELECT count(*) FROM lease WHERE until > ?) leases",
        time.time(),
    )
    return dict(row)


def match(index: Index, folder: Folder, prefixes: Prefixes) -> Match | None:
    """The longest prefix that a card begins with, None where there is none."""
    marks = ", ".join("?" * len(prefixes.blocks))
    candidates = index.rows(
        f"SELECT DISTINCT block, length FROM prefix WHERE block IN ({marks}) AND length <= ? "
        "ORDER BY length DESC",
        *(*prefixes.blocks, prefixes.tokens),
    )
    for row in candidates:
        rows = index.rows(
            "SELECT c.digest FROM prefix p JOIN card c ON c.digest = p.card WHERE p.name = ? "
            f"AND {_ALIVE} ORDER BY c.tokens, c.put_at DESC LIMIT {_SOME}",
            *(prefixes.name(row["length"]), time.time()),
        )
        for found in _there(folder, rows)[:1]:
            return Match(found["digest"], row["length"])
    return None


def pieces(index: Index, folder: Folder, chunks: Chunks, first: int) -> list[Excerpt]:
    """What cards have of a prompt from token ``first`` on, in order, none over another."""
    now, at, found = time.time(), 0, list[Excerpt]()
    places = [_places(index, name, now) for name in chunks.names]
    while at < len(places):
        if chunks.starts[at] < first or not places[at]:
            at += 1
            continue
        ends = {place: _end(chunks, places, at, place) for place in places[at]}
        (card, start), end = max(ends.items(), key=lambda item: item[1])
        tokens = chunks.starts[end] - chunks.starts[at]
        piece = _lengthened(folder, Excerpt(card, start, chunks.starts[at], tokens), chunks, first)
        if piece is not None and piece.tokens >= _LEAST:
            found.append(piece)
            first = piece.at + piece.tokens
        at = end
    return found


def _end(
    chunks: Chunks, places: Sequence[set[tuple[str, int]]], at: int, place: tuple[str, int]
) -> int:
    """The first chunk that does not follow chunk ``at`` in the card that has it at ``place``."""
    (card, start), end = place, at + 1
    while end < len(places):
        if (card, start + chunks.starts[end] - chunks.starts[at]) not in places[end]:
            break
        end += 1
    return end


def _places(index: Index, name: bytes, now: float) -> set[tuple[str, int]]:
    """Cards that have a chunk, and where. Of many the first ones: the same for each chunk."""
    rows = index.rows(
        "SELECT p.card, p.start FROM piece p JOIN card c ON c.digest = p.card WHERE p.name = ? "
        f"AND {_ALIVE} ORDER BY p.card, p.start LIMIT {_SOME}",
        *(name, now),
    )
    return {(row["card"], row["start"]) for row in rows}


def _lengthened(folder: Folder, piece: Excerpt, chunks: Chunks, first: int) -> Excerpt | None:
    """As `lengthen`; None also where the card's file is gone or damaged."""
    try:
        card = folder.open_card(piece.card)
    except CardError:
        return None
    return lengthen(piece, card.token_ids, chunks.ids, first)


def latest(index: Index, folder: Folder, agent: str) -> str:
    """Digest of the card that ``agent`` handed on last. Raises `CardNotFoundError`."""
    rows = index.rows(
        f"SELECT digest FROM card c WHERE agent = ? AND {_ALIVE} ORDER BY put_at DESC "
        f"LIMIT {_SOME}",
        *(agent, time.time()),
    )
    there = _there(folder, rows)
    if not there:
        raise no_card_of(agent)
    return str(there[0]["digest"])


def no_card_of(agent: str) -> CardNotFoundError:
    """The error for an agent that has handed on nothing."""
    return CardNotFoundError(
        f"the store has no card of agent {agent!r}. "
        "Agents are named when a card is captured: capture(…, agent=…)."
    )


def find(index: Index, folder: Folder, beginning: str) -> str:
    """The one digest that begins so, with at least 4 digits. Raises `CardNotFoundError`."""
    if not _HEX.fullmatch(beginning):
        raise CardNotFoundError(
            f"{beginning[:80]!r} is not the beginning of a digest; expected 4 to 64 hex digits."
        )
    rows = index.rows(
        f"SELECT digest FROM card c WHERE digest BETWEEN ? AND ? AND {_ALIVE} LIMIT {_SOME}",
        *(beginning, beginning + "g", time.time()),
    )
    there = _there(folder, rows)
    if len(there) != 1:
        found = "several cards begin" if there else "no card begins"
        raise CardNotFoundError(
            f"{found} with {beginning} in the store. `qkvshare store ls` lists its cards."
        )
    return str(there[0]["digest"])


def require_there(index: Index, folder: Folder, digest: str) -> None:
    """Raise `CardNotFoundError` for a card that the index does not have, or whose time is over."""
    query = f"SELECT 1 FROM card c WHERE digest = ? AND {_ALIVE}"
    if index.row(query, digest, time.time()) is None:
        raise CardNotFoundError(
            f"the card {digest[:12]}… is not in the store {folder.root}. It was never "
            "put there, was removed, or its time has passed. Read the text again."
        )
