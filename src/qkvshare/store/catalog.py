"""Questions to the index: what is there, and what of it begins like a prompt."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass

from ..card.errors import CardNotFoundError
from .eviction import OWN_BYTES
from .index import Index
from .prefixes import Prefixes

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


def entries(index: Index) -> list[Entry]:
    """All cards that have not expired, the last used first."""
    rows = index.rows(
        f"SELECT digest, agent, tokens, CAST({OWN_BYTES} AS INTEGER) AS bytes, put_at, used_at, "
        f"expires_at, hits FROM card c WHERE {_ALIVE} ORDER BY used_at DESC",
        time.time(),
    )
    return [Entry(**dict(row)) for row in rows]


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


def match(index: Index, prefixes: Prefixes) -> Match | None:
    """The longest prefix that a card begins with, None where there is none."""
    marks = ", ".join("?" * len(prefixes.blocks))
    candidates = index.rows(
        f"SELECT DISTINCT block, length FROM prefix WHERE block IN ({marks}) AND length <= ? "
        "ORDER BY length DESC",
        *(*prefixes.blocks, prefixes.tokens),
    )
    for row in candidates:
        found = index.row(
            "SELECT c.digest FROM prefix p JOIN card c ON c.digest = p.card WHERE p.name = ? "
            f"AND {_ALIVE} ORDER BY c.tokens, c.put_at DESC LIMIT 1",
            *(prefixes.name(row["length"]), time.time()),
        )
        if found is not None:
            return Match(found["digest"], row["length"])
    return None


def latest(index: Index, agent: str) -> str:
    """Digest of the card that ``agent`` handed on last. Raises `CardNotFoundError`."""
    row = index.row(
        f"SELECT digest FROM card c WHERE agent = ? AND {_ALIVE} ORDER BY put_at DESC LIMIT 1",
        *(agent, time.time()),
    )
    if row is None:
        raise CardNotFoundError(
            f"the store has no card of agent {agent!r}. "
            "Agents are named when a card is captured: capture(…, agent=…)."
        )
    return str(row["digest"])


def find(index: Index, beginning: str) -> str:
    """The one digest that begins so, with at least 4 digits. Raises `CardNotFoundError`."""
    if not _HEX.fullmatch(beginning):
        raise CardNotFoundError(
            f"{beginning[:80]!r} is not the beginning of a digest; expected 4 to 64 hex digits."
        )
    rows = index.rows(
        f"SELECT digest FROM card c WHERE digest BETWEEN ? AND ? AND {_ALIVE} LIMIT 2",
        *(beginning, beginning + "g", time.time()),
    )
    if len(rows) != 1:
        found = "several cards begin" if rows else "no card begins"
        raise CardNotFoundError(
            f"{found} with {beginning} in the store. `qkvshare store ls` lists its cards."
        )
    return str(rows[0]["digest"])
