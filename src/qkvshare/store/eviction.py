"""The store's limit, and what goes to stay below it: cards that save the least reading per byte.

GreedyDual-Size-Frequency (Cherkasova 1998): a card's priority is the store's clock when it was
last used plus ``uses · saved ms / bytes``; the lowest goes first, and the clock moves up to what
went. So a card that nobody uses ages, however dear it was to make.
"""

from __future__ import annotations

import math
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from ..card.errors import StoreError, StoreFullError
from .catalog import OWN_BYTES, require_there
from .folder import Folder
from .index import Index

# Before that nobody can tell whether a card that was put will be used.
GRACE_SECONDS = 60.0

# SmolLM2-135M on two cores reads 1024, 2048, 4096 and 8128 tokens in 2.2, 5.3, 13.3 and 33.8 s
# (docs/results/ttft.md): a line and a square, equal at some 6500 tokens. Only ratios matter here.
_BEND = 6500.0


def reading_ms(tokens: int) -> float:
    """What reading ``tokens`` takes, where nobody measured it; ms of a small model on two cores."""
    return 1.8 * tokens * (1 + tokens / _BEND)


def stored_bytes(index: Index) -> int:
    """Bytes of all files that the index knows."""
    row = index.row("SELECT bytes FROM total")
    return int(row["bytes"]) if row else 0


def touch(index: Index, digest: str) -> None:
    """Give a card that was just put or used its new priority. Within `Index.writing`."""
    index.run(
        "UPDATE card AS c SET priority = (SELECT clock FROM total) + (hits + 1) * saved_ms / "
        f"max({OWN_BYTES}, 1) WHERE digest = ?",
        digest,
    )


def use(index: Index, digest: str) -> None:
    """Count one more use of a card. Within `Index.writing`."""
    index.run("UPDATE card SET hits = hits + 1, used_at = ? WHERE digest = ?", time.time(), digest)
    touch(index, digest)


def drop(index: Index, folder: Folder, digest: str) -> None:
    """Remove a card, and the segments that no other card has. Within `Index.writing`.

    Files first: killed in between, or where the full disk takes no row's removal, the card is gone
    and its space is free; `catalog` passes its row over, and the next `gc` removes it.
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


@dataclass
class Capacity:
    """What cards, and uploads that are still arriving, may take together in one tenant's store.

    Attributes:
        limit: bytes; None where there is none.
        arriving: bytes of uploads to this process, which have files of their own.
    """

    folder: Folder
    index: Index
    limit: int | None
    arriving: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def count(self, nbytes: int) -> None:
        """Add to what is arriving; less than 0 where it is gone again."""
        with self._lock:
            self.arriving += nbytes

    def make(self, need: int) -> None:
        """Drop cards so that ``need`` more bytes fit. Raises `StoreFullError`."""
        if self.limit is None:
            return
        if self.arriving + need <= self.limit:
            with self.index.writing():
                expire(self.index, self.folder)
                self.shrink(need)
        wanted = stored_bytes(self.index) + self.arriving + need
        if wanted > self.limit:
            raise full(self.limit, wanted)

    def settle(self, own: str) -> bool:
        """Drop other cards than ``own``, which was just entered; False where it must go itself.

        Several writers may each have made space for itself alone. Within `Index.writing`.
        """
        if self.limit is None:
            return True
        self.shrink(keep=own)
        fits = stored_bytes(self.index) + self.arriving <= self.limit
        if not fits:
            drop(self.index, self.folder, own)
        return fits

    def shrink(self, need: int = 0, keep: str = "") -> list[str]:
        """Drop cards until ``need`` bytes are free, as far as possible. Within `Index.writing`.

        First to go are cards of agents that have waited on a tool for longer than holding them is
        worth, then the others by priority; then those put less than `GRACE_SECONDS` ago, which
        nobody can have used yet; last those that are worth waiting for. Leased cards stay, and
        ``keep``. Returns the digests of the cards dropped.
        """
        dropped: list[str] = []
        if self.limit is None:
            return dropped
        index, now = self.index, time.time()
        while stored_bytes(index) > self.limit - self.arriving - need:
            row = index.row(
                "SELECT digest, priority, CASE WHEN yields_at <= ?2 THEN 0 WHEN yields_at > ?2 "
                "THEN 3 WHEN put_at > ?3 THEN 2 ELSE 1 END AS class FROM card WHERE digest != ?1 "
                "AND digest NOT IN (SELECT card FROM lease WHERE until > ?2) ORDER BY class, "
                "CASE class WHEN 0 THEN yields_at WHEN 2 THEN put_at WHEN 3 THEN yields_at "
                "ELSE priority END LIMIT 1",
                *(keep, now, now - GRACE_SECONDS),
            )
            if row is None:
                break
            drop(index, self.folder, row["digest"])
            index.run("UPDATE total SET clock = max(clock, ?)", row["priority"])
            dropped.append(row["digest"])
        return dropped


def full(limit: int, wanted: int) -> StoreFullError:
    """The error for a store that would have ``wanted`` bytes."""
    return StoreFullError(
        f"with this card the store would have {wanted:,} bytes, its limit is {limit:,}, and the "
        "cards that remain are in use. Raise the limit, or wait until their leases end."
    )


def require_number(name: str, number: float | None, least: float = 0) -> None:
    """Raise `StoreError` unless ``number`` is None, or finite and not below ``least``."""
    if number is not None and not (math.isfinite(number) and number >= least):
        raise StoreError(f"{name}={number}; expected a finite number, {least:g} or more.")


@contextmanager
def lease(index: Index, folder: Folder, digest: str, seconds: float) -> Iterator[None]:
    """Keep a card while the block runs; as `Store.lease`."""
    holder = uuid.uuid4().hex
    with index.writing():
        require_there(index, folder, digest)
        row = holder, digest, time.time() + seconds
        index.run("INSERT INTO lease VALUES (?, ?, ?)", *row)
    try:
        yield
    finally:
        with suppress(StoreError), index.writing():  # it ends by itself, too
            index.run("DELETE FROM lease WHERE holder = ?", holder)


def require_free(index: Index, digest: str) -> None:
    """Raise `StoreError` while a card is leased."""
    now = time.time()
    lease = index.row("SELECT until FROM lease WHERE card = ? AND until > ?", digest, now)
    if lease is not None:
        raise StoreError(
            f"the card {digest[:12]}… is in use for {lease['until'] - now:.0f} "
            "more seconds at most. Wait until its lease ends."
        )
