"""What to drop when there is no room: the cards that save the least reading per byte.

GreedyDual-Size-Frequency (Cherkasova 1998): a card's priority is the store's clock when it was
last used plus ``uses · saved ms / bytes``; the lowest goes first, and the clock moves up to what
went. So a card that nobody uses ages, however dear it was to make.
"""

from __future__ import annotations

import time

from .folder import Folder
from .index import Index

# SmolLM2-135M on two cores reads 1024, 2048, 4096 and 8128 tokens in 2.2, 5.3, 13.3 and 33.8 s
# (docs/results/ttft.md): a line and a square, equal at some 6500 tokens. Only ratios matter here.
_BEND = 6500.0

# Bytes of card ``c``: its own file, and each segment's shared evenly by those who have it.
OWN_BYTES = (
    "(c.bytes + coalesce((SELECT sum(s.bytes * 1.0 / (SELECT count(*) FROM part o WHERE "
    "o.segment = s.name)) FROM part p JOIN segment s ON s.name = p.segment "
    "WHERE p.card = c.digest), 0))"
)


def reading_ms(tokens: int) -> float:
    """What reading ``tokens`` takes, where nobody measured it; ms of a small model on two cores."""
    return 1.8 * tokens * (1 + tokens / _BEND)


def stored_bytes(index: Index) -> int:
    """Bytes of all files that the index knows."""
    row = index.row("SELECT bytes FROM total")
    return int(row["bytes"]) if row else 0


def own_bytes(index: Index, digest: str) -> float:
    """Bytes that a card takes; what it shares is counted in parts."""
    row = index.row(f"SELECT {OWN_BYTES} AS own FROM card c WHERE digest = ?", digest)
    return float(row["own"]) if row else 0.0


def touch(index: Index, digest: str) -> None:
    """Give a card that was just put or used its new priority. Within `Index.writing`."""
    index.run(
        "UPDATE card AS c SET priority = (SELECT clock FROM total) + (hits + 1) * saved_ms / "
        f"max({OWN_BYTES}, 1) WHERE digest = ?",
        digest,
    )


def drop(index: Index, folder: Folder, digest: str) -> None:
    """Remove a card, and the segments that no other card has. Within `Index.writing`.

    Files first: killed in between, or where the full disk takes no row's removal, the card is gone
    and makes room; `catalog` passes its row over, and the next `gc` removes it.
    """
    parts = index.rows("SELECT DISTINCT segment FROM part WHERE card = ?", digest)
    folder.card_path(digest).unlink(missing_ok=True)
    index.run("DELETE FROM card WHERE digest = ?", digest)
    for part in parts:
        name = part["segment"]
        if index.row("SELECT 1 FROM part WHERE segment = ? LIMIT 1", name) is None:
            folder.segment_path(name).unlink(missing_ok=True)
            index.run("DELETE FROM segment WHERE name = ?", name)


def expire(index: Index, folder: Folder) -> list[str]:
    """Drop what has passed its time and is not leased. Within `Index.writing`."""
    rows = index.rows(
        "SELECT digest FROM card WHERE expires_at <= ?1 AND digest NOT IN "
        "(SELECT card FROM lease WHERE until > ?1)",
        time.time(),
    )
    for row in rows:
        drop(index, folder, row["digest"])
    return [row["digest"] for row in rows]


def make_room(
    index: Index, folder: Folder, goal: int, *, grace: float, keep: str = ""
) -> list[str]:
    """Drop cards until at most ``goal`` bytes are stored, as far as possible. Within `writing`.

    First to go are cards of agents that have waited on a tool for longer than holding them is
    worth, then the others by priority; then those put less than ``grace`` seconds ago, which
    nobody can have used yet; last those that are worth waiting for. Leased cards stay, and
    ``keep``.
    """
    dropped: list[str] = []
    now = time.time()
    while stored_bytes(index) > goal:
        row = index.row(
            "SELECT digest, priority, CASE WHEN yields_at <= ?2 THEN 0 WHEN yields_at > ?2 THEN 3 "
            "WHEN put_at > ?3 THEN 2 ELSE 1 END AS turn FROM card WHERE digest != ?1 AND digest "
            "NOT IN (SELECT card FROM lease WHERE until > ?2) ORDER BY turn, CASE turn WHEN 0 THEN "
            "yields_at WHEN 2 THEN put_at WHEN 3 THEN yields_at ELSE priority END LIMIT 1",
            *(keep, now, now - grace),
        )
        if row is None:
            break
        drop(index, folder, row["digest"])
        index.run("UPDATE total SET clock = max(clock, ?)", row["priority"])
        dropped.append(row["digest"])
    return dropped
