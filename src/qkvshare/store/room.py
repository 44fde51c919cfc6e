"""The store's limit: what cards, and uploads that are still arriving, may take together."""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass, field

from ..card.errors import StoreError, StoreFullError
from . import eviction
from .folder import Folder
from .index import Index

# Before that nobody can tell whether a card that was put will be used.
GRACE_SECONDS = 60.0


@dataclass
class Room:
    """Room in one tenant's store.

    Attributes:
        limit: bytes; None where there is none.
        arriving: bytes of uploads to this process, which have files of their own.
    """

    folder: Folder
    index: Index
    limit: int | None
    arriving: int = 0
    _counting: threading.Lock = field(default_factory=threading.Lock)

    def count(self, nbytes: int) -> None:
        """Add to what is arriving; less than 0 where it is gone again."""
        with self._counting:
            self.arriving += nbytes

    def make(self, need: int) -> None:
        """Drop cards so that ``need`` more bytes fit. Raises `StoreFullError`."""
        if self.limit is None:
            return
        if self.arriving + need <= self.limit:
            with self.index.writing():
                eviction.expire(self.index, self.folder)
                self._evict(need)
        self._require(need)

    def settle(self, own: str) -> bool:
        """Drop other cards than ``own``, which was just entered; False where it must go itself.

        Several writers may each have made room for itself alone. Within `Index.writing`.
        """
        if self.limit is None:
            return True
        self._evict(0, keep=own)
        fits = eviction.stored_bytes(self.index) + self.arriving <= self.limit
        if not fits:
            eviction.drop(self.index, self.folder, own)
        return fits

    def shrink(self) -> list[str]:
        """Get below the limit; returns digests of the cards dropped. Within `Index.writing`."""
        return [] if self.limit is None else self._evict(0)

    def _evict(self, need: int, keep: str = "") -> list[str]:
        assert self.limit is not None
        goal = self.limit - self.arriving - need
        return eviction.make_room(self.index, self.folder, goal, grace=GRACE_SECONDS, keep=keep)

    def _require(self, need: int) -> None:
        wanted = eviction.stored_bytes(self.index) + self.arriving + need
        if self.limit is not None and wanted > self.limit:
            raise full(self.limit, wanted)


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
