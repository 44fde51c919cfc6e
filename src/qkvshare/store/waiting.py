"""Agents that wait on tools: how long their cards are kept, learnt from the waits seen.

When its time is over a card is not dropped, it is the first to go where space is needed: dropped
at once it would be missed where there was space after all (docs/results/ttl.md).
"""

from __future__ import annotations

import math
import time
from contextlib import suppress
from itertools import groupby
from operator import itemgetter

from ..card.errors import StoreError
from .catalog import OWN_BYTES
from .index import Index
from .ttl import State, Ttl, Wait

# An agent that has not come back by then is taken for one that never will.
GONE_SECONDS = 24 * 3600.0
# Waits kept for all tools together: clients name the tools, so there may be any number of them.
MOST_WAITS = 4096


def learnt(index: Index, limit: int | None) -> Ttl:
    """The policy after all waits in the index; bytes cost nothing where there is no ``limit``."""
    rows = index.rows("SELECT * FROM waited ORDER BY began")
    waits: dict[str, tuple[Wait, ...]] = {}
    for tool, own in groupby(sorted(rows, key=itemgetter("tool")), itemgetter("tool")):
        waits[tool] = tuple(Wait(r["began"], r["seconds"], r["saved_ms"], r["bytes"]) for r in own)
    policy = Ttl(waits)
    return policy if limit is None else policy.priced(limit, time.time())


def hold(index: Index, digest: str, tool: str, state: State, limit: int | None) -> float:
    """Let the card's agent wait on ``tool`` from now; returns how many seconds its card is kept.

    Within `Index.writing`.
    """
    row = index.row(f"SELECT saved_ms, {OWN_BYTES} AS own FROM card c WHERE digest = ?", digest)
    assert row is not None
    now, nbytes = time.time(), math.ceil(row["own"])
    seconds = learnt(index, limit).ttl(tool, row["saved_ms"], nbytes, state)
    waiting = digest, tool, now, row["saved_ms"], nbytes
    index.run("INSERT OR REPLACE INTO waiting VALUES (?, ?, ?, ?, ?)", *waiting)
    index.run("UPDATE card SET yields_at = ? WHERE digest = ?", now + seconds, digest)
    return seconds


def come_back(index: Index, digest: str) -> None:
    """The agent asks for its card, there or not: its wait is one more to learn from."""
    row = index.row("SELECT * FROM waiting WHERE card = ?", digest)
    if row is None:
        return
    with suppress(StoreError), index.writing():
        _learn(index, digest, time.time() - row["began"])
        index.run("UPDATE card SET yields_at = NULL WHERE digest = ?", digest)


def give_up(index: Index) -> None:
    """Learn from those who did not come back. Within `Index.writing`."""
    late = time.time() - GONE_SECONDS
    for row in index.rows("SELECT card FROM waiting WHERE began < ?", late):
        _learn(index, row["card"], math.inf)


def _learn(index: Index, digest: str, seconds: float) -> None:
    """Move a wait to those that are over, of which the last ones of each tool, and of all, stay."""
    index.run(
        "INSERT INTO waited SELECT tool, began, ?, saved_ms, bytes FROM waiting WHERE card = ?",
        *(max(seconds, 0.0), digest),
    )
    index.run(
        "DELETE FROM waited WHERE rowid IN (SELECT w.rowid FROM waited w JOIN waiting n ON "
        "n.card = ? AND w.tool = n.tool ORDER BY w.began DESC LIMIT -1 OFFSET ?)",
        *(digest, Ttl().last),
    )
    index.run("DELETE FROM waited WHERE rowid <= (SELECT max(rowid) FROM waited) - ?", MOST_WAITS)
    index.run("DELETE FROM waiting WHERE card = ?", digest)
