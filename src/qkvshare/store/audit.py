"""Compare files and index: find damage, clear away what nobody owns, make the index again."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from ..card.errors import CardError, CardKeyError, CardNotFoundError, StoreError, StoreFullError
from . import eviction
from .folder import Folder
from .index import Index
from .put import enter

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Audit:
    """What was found: ``damaged`` and ``lost`` are digests of cards, with what is wrong.

    ``orphans``: files that no card in the index needs; left by writers that were killed, they
    take space and nothing else, and `Store.gc` removes them in time.
    """

    cards: int
    segments: int
    bytes: int
    orphans: int
    damaged: dict[str, str] = field(default_factory=dict)
    lost: dict[str, str] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether every card in the index can be read, to the last byte."""
        return not self.damaged and not self.lost


def audit(folder: Folder, index: Index) -> Audit:
    """Read every byte of every card in the index and compare it with its digest.

    Others may use the store meanwhile; what they remove is not counted.
    """
    damaged: dict[str, str] = {}
    lost: dict[str, str] = {}
    rows = index.rows("SELECT digest FROM card ORDER BY digest")
    cards = len(rows)
    for row in rows:
        digest = row["digest"]
        try:
            folder.open_card(digest).verified()
        except CardError as error:
            if index.row("SELECT 1 FROM card WHERE digest = ?", digest) is None:
                cards -= 1
                continue
            problems = lost if isinstance(error, CardNotFoundError) else damaged
            problems[digest] = str(error)
    known = index.row("SELECT count(*) AS number FROM segment")
    return Audit(
        cards=cards,
        segments=known["number"] if known else 0,
        bytes=eviction.stored_bytes(index),
        orphans=sum(1 for _ in _orphans(folder, index)),
        damaged=damaged,
        lost=lost,
    )


# What a writer has not finished after this long it will not finish.
ABANDONED_SECONDS = 3600.0


def sweep(folder: Folder, index: Index, abandoned: float) -> None:
    """Remove files that no card needs and that are older than ``abandoned`` seconds.

    A writer who still needs one writes it again. One that is half written would be missed, so
    those wait for `ABANDONED_SECONDS` in any case. Rows whose files are gone go too, but not those
    whose whole folder is away.
    """
    now = time.time()
    for path in folder.unfinished():
        with suppress(FileNotFoundError):
            if path.stat().st_mtime < now - ABANDONED_SECONDS:
                path.unlink()
    for kind, name in list(_orphans(folder, index)):
        path = folder.card_path(name) if kind == "card" else folder.segment_path(name)
        with index.writing(), suppress(FileNotFoundError):
            if not _owned(index, kind, name) and path.stat().st_mtime < now - abandoned:
                path.unlink()
    for row in index.rows("SELECT digest FROM card"):
        if folder.lost(row["digest"]):
            # On a full disk the row stays, and is passed over.
            with suppress(StoreFullError), index.writing():
                if folder.lost(row["digest"]):  # somebody may have put it again
                    eviction.drop(index, folder, row["digest"])


def rebuild(folder: Folder, index: Index) -> None:
    """Enter every card of the folder that can be opened into a new index.

    Killed in between, it is done again when the store is opened: until then what is not in the
    index would be taken for nobody's. What only the index knew is lost: times to live, leases,
    uses, and who vouched for a card, so that prompts find none until it is put again. Raises
    `CardKeyError` rather than leave out what another key opens, and `StoreError` where files are
    there and cannot be read, or their folder is away.
    """
    for digest in sorted(folder.cards()):
        try:
            card = folder.open_card(digest)
        except CardKeyError:
            raise
        except CardNotFoundError as error:
            _require_lost(error)
            log.warning("left out of the store's new index: %s", error)
            continue
        except CardError as error:
            log.warning("left out of the store's new index: %s", error)
            continue
        log.warning("the store's index lacked the card %s; it is entered again", digest)
        with index.writing():
            enter(index, folder, card)


def _require_lost(error: CardNotFoundError) -> None:
    """Raise `StoreError` unless the file that is not found was removed."""
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    removed = isinstance(cause, FileNotFoundError)
    if not removed or not Path(str(getattr(cause, "filename", ""))).parent.is_dir():
        raise StoreError(
            f"the store's index cannot be made now: {error} Mount what is away, or let the file be "
            "read, and open the store again. Nothing was removed."
        ) from error


def _orphans(folder: Folder, index: Index) -> Iterator[tuple[str, str]]:
    """Kind and name of every file without a row; asked one by one, for others go on."""
    for digest in folder.cards():
        if not _owned(index, "card", digest):
            yield "card", digest
    for name in folder.segments():
        if not _owned(index, "segment", name):
            yield "segment", name


def _owned(index: Index, kind: str, name: str) -> bool:
    table = "card WHERE digest" if kind == "card" else "segment WHERE name"
    return index.row(f"SELECT 1 FROM {table} = ?", name) is not None
