"""Leases: a card that is in use is neither removed nor evicted."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from ..card.errors import StoreError
from .catalog import require_there
from .folder import Folder
from .index import Index


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
