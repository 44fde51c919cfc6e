"""`Store`: where cards live between hand-offs, on one machine, for many processes at once."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from pathlib import Path

from ..card import CacheCard, Identity, Key
from ..card.container import blob_name
from ..card.digest import TokenIds, digest_json
from ..card.errors import CardNotFoundError, CardThinError, StoreError, StoreFullError
from . import catalog, eviction, waiting
from .audit import ABANDONED_SECONDS, Audit, audit, rebuild, sweep
from .catalog import Entry, Match
from .entering import enter
from .folder import Blobs, Folder
from .index import Index
from .prefixes import Prefixes
from .tenant import Tenant
from .ttl import State

# Before that nobody can tell whether a card that was put will be used.
GRACE_SECONDS = 60.0


class Store:
    """Cards as files named by their content, with an index. One object may serve many threads.

    A run of tokens that several cards have in common is kept once. What `put` has returned is there
    until it is removed, expires or is evicted, through kills and power cuts.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        tenant: str | None = None,
        key: Key | None = None,
        limit: int | None = None,
    ) -> None:
        """Open or make the store in folder ``root``.

        Args:
            root: the folder; it may hold the stores of several tenants.
            tenant: whose cards; tenants share nothing. None for a store with one user.
            key: seals all files; a named tenant's own key is derived from it.
            limit: bytes that all files of the tenant together may take; `put` makes room.

        Raises `StoreError`, or `CardKeyError` where the index is made again from files that the key
        does not open.
        """
        self.root, self.limit = Path(root), limit
        who = Tenant.of(self.root, tenant, key)
        self.salt = who.salt
        self.folder = Folder(who.folder, who.key)
        self.folder.prepare()
        self.index = Index(who.folder / "index.sqlite")
        if not self.index.complete:
            rebuild(self.folder, self.index)

    def close(self) -> None:
        """Close the index."""
        self.index.close()

    def under(self, name: str) -> Store:
        """The same store for cards of a salt of their own, which follows from ``name``.

        They are matched by no prompt that is not under the same name; files, index and limit are
        the store's.
        """
        apart = copy(self)
        apart.salt = digest_json(["under", self.salt, name])
        return apart

    def put(
        self, card: CacheCard, *, ttl: float | None = None, saved_ms: float | None = None
    ) -> str:
        """Store a card and return its digest, once everything is on the disk.

        A thin card is completed by the segments that are here. ``ttl``: seconds after which the
        card goes, if it does not expire before; ``saved_ms``: what reading its text takes longer,
        where that was measured.
        Raises `StoreFullError`, `CardThinError`, `CardWriteError`, `CardDigestError` for a damaged
        card, and `StoreError` for one whose digests have another salt than `salt`.
        """
        if card.manifest.salt != self.salt:
            raise StoreError(
                f"the card {card.digest[:12]}… has {'another' if card.manifest.salt else 'no'} "
                f"salt, cards in {self.folder.root} have {'their own' if self.salt else 'none'}. "
                "Capture with salt=store.salt, or put card.salted(store.salt)."
            )
        tensors = card.verify()
        blobs: dict[str, Blobs | None] = {}
        for number, name in enumerate(card.manifest.names):
            count = len(card.manifest.segments[number].blobs) if number >= card.thin else 0
            held: Blobs = {blob_name(at, 0): tensors[blob_name(at, number)] for at in range(count)}
            blobs[name] = held or None
        self._make_room(card, blobs)
        while True:
            for name, mine in blobs.items():
                if not self.folder.segment_path(name).exists():
                    if mine is None:
                        raise CardThinError(
                            f"the thin card {card.digest[:12]}… needs the segment {name[:12]}…, "
                            "which is not in this store. Put its parent first, or the whole card."
                        )
                    self.folder.write_segment(name, mine)
            if not self.folder.card_path(card.digest).exists():
                self.folder.write_card(card)
            if self._enter(card, ttl, saved_ms):
                return card.digest
            # Somebody removed a file in between: write it again.

    def _enter(self, card: CacheCard, ttl: float | None, saved_ms: float | None) -> bool:
        """Make the card visible; False where one of its files is not there any more.

        Raises `StoreFullError`.
        """
        limit = self.limit
        with self.index.writing():
            if not enter(self.index, self.folder, card, ttl, saved_ms):
                return False
            if limit is None:
                return True
            # Several writers may each have made room for itself alone.
            own = card.digest
            eviction.make_room(self.index, self.folder, limit, keep=own, grace=GRACE_SECONDS)
            stored = eviction.stored_bytes(self.index)
            if stored > limit:
                eviction.drop(self.index, self.folder, own)
        if stored > limit:
            raise _full(limit, stored)
        return True

    def get(self, digest: str, tokens: int | None = None) -> CacheCard:
        """The card of this digest, or its first ``tokens`` tokens (where a segment of it ends).

        Bytes are read when they are needed, and verified; the card stays readable when it is
        removed from the store meanwhile. An agent that waited on a tool (`hold`) is back with that.
        Raises `CardNotFoundError`.
        """
        if self.index.row("SELECT 1 FROM waiting WHERE card = ?", digest) is not None:
            with self.index.writing():
                waiting.come_back(self.index, digest)  # late or not: what it waited is known now
        self._require(digest)
        try:
            card = self.folder.open_card(digest, tokens)
        except CardNotFoundError:
            self._clear(digest)  # is it being removed just now, or is something lost?
            self._require(digest)
            raise
        with self.index.writing():
            self.index.run(
                "UPDATE card SET hits = hits + 1, used_at = ? WHERE digest = ?", time.time(), digest
            )
            eviction.touch(self.index, digest)
        return card

    def match(self, ids: Sequence[int] | TokenIds, identity: Identity) -> Match | None:
        """The longest prefix of a prompt's ``ids``, ``[tokens]``, that a card of this model has.

        Prefixes end where segments do. ``get(match.card, match.tokens)`` is the card to go on from;
        None where nothing matches. ``identity``: of the model, see `qkvshare.identify`.
        """
        return catalog.match(self.index, Prefixes.of(ids, identity, self.salt))

    def latest(self, agent: str) -> str:
        """Digest of the card that ``agent`` handed on last. Raises `CardNotFoundError`."""
        return catalog.latest(self.index, agent)

    def find(self, beginning: str) -> str:
        """The one digest that begins so. Raises `CardNotFoundError`."""
        return catalog.find(self.index, beginning)

    def ls(self) -> list[Entry]:
        """All cards that have not expired, the last used first."""
        return catalog.entries(self.index)

    def stats(self) -> dict[str, int]:
        """Counts and bytes: of all files, and of what the same cards would take by themselves."""
        return catalog.stats(self.index)

    def remove(self, digest: str) -> None:
        """Remove a card. Raises `CardNotFoundError`, or `StoreError` while it is leased."""
        with self.index.writing():
            self._require(digest)
            lease = self.index.row(
                "SELECT until FROM lease WHERE card = ? AND until > ?", digest, time.time()
            )
            if lease is not None:
                raise StoreError(
                    f"the card {digest[:12]}… is in use for {lease['until'] - time.time():.0f} "
                    "more seconds at most. Wait until its lease ends."
                )
            eviction.drop(self.index, self.folder, digest)

    @contextmanager
    def lease(self, digest: str, seconds: float = 600.0) -> Iterator[None]:
        """Keep a card from expiry, eviction and removal while the block runs.

        A lease ends by itself after ``seconds``, so a process that was killed holds nothing for
        ever. Raises `CardNotFoundError`.
        """
        holder = uuid.uuid4().hex
        with self.index.writing():
            self._require(digest)
            row = holder, digest, time.time() + seconds
            self.index.run("INSERT INTO lease VALUES (?, ?, ?)", *row)
        try:
            yield
        finally:
            with self.index.writing():
                self.index.run("DELETE FROM lease WHERE holder = ?", holder)

    def hold(self, digest: str, tool: str, state: State = "foreground") -> float:
        """The card's agent calls ``tool`` now: let the card claim room while that is worth it.

        Learnt from the waits on this tool, against the price of room under `limit`; see `ttl`.
        From then on the card is the first to go where room is needed. ``state``: of the agent's
        app. Returns seconds, inf where nothing limits them. `get` ends the wait. Raises
        `CardNotFoundError`.
        """
        with self.index.writing():
            self._require(digest)
            return waiting.hold(self.index, digest, tool, state, self.limit)

    def gc(self, abandoned: float = ABANDONED_SECONDS) -> list[str]:
        """Drop expired cards, get below the limit, and clear away what nobody owns.

        ``abandoned``: age in seconds from which a file without a card is taken for one whose writer
        was killed. Returns the digests of the cards dropped.
        """
        with self.index.writing():
            self.index.run("DELETE FROM lease WHERE until <= ?", time.time())
            waiting.give_up(self.index)
            dropped = eviction.expire(self.index, self.folder)
            if self.limit is not None:
                dropped += eviction.make_room(
                    self.index, self.folder, self.limit, grace=GRACE_SECONDS
                )
        sweep(self.folder, self.index, abandoned)
        return dropped

    def audit(self) -> Audit:
        """Read every byte of every card and compare it with its digest."""
        return audit(self.folder, self.index)

    def _require(self, digest: str) -> None:
        query = "SELECT 1 FROM card WHERE digest = ? AND (expires_at IS NULL OR expires_at > ?)"
        if self.index.row(query, digest, time.time()) is None:
            raise CardNotFoundError(
                f"the card {digest[:12]}… is not in the store {self.folder.root}. It was never "
                "put there, was removed, or its time has passed. Read the text again."
            )

    def _clear(self, digest: str) -> None:
        """Finish the removal of a card whose remover was killed, or wait for one that was not."""
        with self.index.writing():
            if not self.folder.card_path(digest).exists():
                eviction.drop(self.index, self.folder, digest)

    def _make_room(self, card: CacheCard, blobs: dict[str, Blobs | None]) -> None:
        """Drop cards so that ``card`` fits under the limit. Raises `StoreFullError`."""
        if self.limit is None:
            return
        absent = [b for n, b in blobs.items() if b and not self.folder.segment_path(n).exists()]
        need = self.folder.card_bytes(card) + sum(map(self.folder.segment_bytes, absent))
        with self.index.writing():
            eviction.expire(self.index, self.folder)
            eviction.make_room(self.index, self.folder, self.limit - need, grace=GRACE_SECONDS)
            stored = eviction.stored_bytes(self.index)
        if stored + need > self.limit:
            raise _full(self.limit, stored + need)


def _full(limit: int, wanted: int) -> StoreFullError:
    return StoreFullError(
        f"with this card the store would have {wanted:,} bytes, its limit is {limit:,}, and the "
        "cards that remain are in use. Raise the limit, or wait until their leases end."
    )
