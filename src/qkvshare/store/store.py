"""`Store`: where cards live between hand-offs, on one machine, for many processes at once."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, suppress
from copy import copy
from functools import partial
from pathlib import Path

from ..card import CacheCard, Identity, Key
from ..card.digest import TokenIds, digest_json
from ..card.errors import CardNotFoundError, StoreError, StoreFullError
from . import catalog, eviction, waiting
from .audit import ABANDONED_SECONDS, Audit, audit, rebuild, sweep
from .catalog import Entry, Match
from .eviction import Capacity, full, require_number
from .folder import Folder
from .index import Index
from .pieces import Chunks, Excerpt
from .prefixes import Prefixes
from .put import put
from .tenant import Tenant
from .ttl import State
from .upload import Upload


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
            limit: bytes that all files of the tenant together may take; `put` evicts cards for it.

        A store whose folder cannot be written is opened to be read. Raises `StoreError`, or
        `CardKeyError` where the index is made again from files that the key does not open.
        """
        require_number("limit", limit)
        # Absolute, so that it is the same folder when the process goes to another one.
        self.root, self.limit = Path(root).absolute(), limit
        who = Tenant.of(self.root, tenant, key)
        self.salt = who.salt
        self.folder = Folder(who.folder, who.key)
        self.index = Index(who.folder / "index.sqlite", partial(rebuild, self.folder))
        self.capacity = Capacity(self.folder, self.index, limit)

    def close(self) -> None:
        """Close the index."""
        self.index.close()

    @property
    def sealed(self) -> bool:
        """Whether all files are sealed with a key."""
        return self.folder.key is not None

    def under(self, name: str) -> Store:
        """The same store for cards of a salt of their own, which follows from ``name``.

        They are matched by no prompt that is not under the same name; files, index and limit are
        the store's.
        """
        apart = copy(self)
        apart.salt = digest_json(["under", self.salt, name])
        return apart

    def put(
        self,
        card: CacheCard,
        *,
        ttl: float | None = None,
        saved_ms: float | None = None,
        vouched: bool = True,
    ) -> str:
        """Store a card and return its digest, once everything is on the disk.

        A thin card is completed by the segments that are here. Files of the card that are here
        already are read and compared with their digests; a damaged one is written again.

        Args:
            card: what to store; its bytes are verified.
            ttl: seconds after which the card goes, if it does not expire before.
            saved_ms: what reading its text takes longer, where that was measured.
            vouched: whether prompts that begin like the card may find it (`match`). Say False for a
                card of somebody you do not trust: its ids do not show what its state says.

        Raises `StoreFullError`, `CardThinError`, `CardWriteError`, `CardDigestError` for a damaged
        card, and `StoreError` for one whose digests have another salt than `salt`, for numbers that
        are none, and for a store that can only be read.
        """
        put(card, self.capacity, self.salt, ttl, saved_ms, vouched)
        return card.digest

    def vouched(self, digest: str) -> bool:
        """Whether prompts find the card by how they begin."""
        return self.index.row("SELECT 1 FROM prefix WHERE card = ? LIMIT 1", digest) is not None

    def set_aside(self, digest: str) -> None:
        """Let no prompt find the card any more, until it is put again; `get` still does.

        For a card that `match` found and that turned out not to be usable.
        """
        with self.index.writing():
            for table in ("prefix", "piece"):
                self.index.run(f"DELETE FROM {table} WHERE card = ?", digest)

    def receive(self, announced: int | None = None) -> Upload:
        """A card file that arrives piece by piece: `Upload.write`, then `Upload.card`.

        It counts against the limit, is sealed where the store is, and is gone when it is closed or
        the process ends. ``announced``: its bytes, if somebody said so. Raises `StoreFullError`.
        """
        self.index.require_writable()
        if self.limit is not None and announced is not None and announced > self.limit:
            raise full(self.limit, announced)
        return Upload(self.folder, self.capacity)

    def get(self, digest: str, tokens: int | None = None) -> CacheCard:
        """The card of this digest, or its first ``tokens`` tokens (where a segment of it ends).

        Bytes are read when they are needed, and verified; the card stays readable when it is
        removed from the store meanwhile. An agent that waited on a tool (`hold`) is back with that.
        Raises `CardNotFoundError`.
        """
        waiting.come_back(self.index, digest)  # late or not: what it waited is known now
        self._require(digest)
        try:
            card = self.folder.open_card(digest, tokens)
        except CardNotFoundError:
            self._clear(digest)  # is it being removed just now, or is something lost?
            self._require(digest)
            raise
        # Reading needs no writing: on a full disk, or one that can only be read, no use is counted.
        with suppress(StoreError), self.index.writing():
            eviction.use(self.index, digest)
        return card

    def peek(self, digest: str) -> CacheCard:
        """The card of this digest, to look at: unlike `get` it counts no use and ends no wait.

        Raises `CardNotFoundError`.
        """
        self._require(digest)
        return self.folder.open_card(digest)

    def match(self, ids: Sequence[int] | TokenIds, identity: Identity) -> Match | None:
        """The longest prefix of a prompt's ``ids``, ``[tokens]``, that a card of this model has.

        Prefixes end where segments do. ``get(match.card, match.tokens)`` is the card to go on from;
        None where nothing matches. ``identity``: of the model, see `qkvshare.identify`.
        """
        return catalog.match(self.index, self.folder, Prefixes.of(ids, identity, self.salt))

    def pieces(
        self, ids: Sequence[int] | TokenIds, identity: Identity, first: int = 0
    ) -> list[Excerpt]:
        """What cards have of a prompt behind its ``first`` tokens, in order; see `match`."""
        chunks = Chunks.of(ids, identity, self.salt)
        return catalog.pieces(self.index, self.folder, chunks, first)

    def latest(self, agent: str) -> str:
        """Digest of the card that ``agent`` handed on last. Raises `CardNotFoundError`."""
        return catalog.latest(self.index, self.folder, agent)

    def find(self, beginning: str) -> str:
        """The one digest that begins so. Raises `CardNotFoundError`."""
        return catalog.find(self.index, self.folder, beginning)

    def ls(self) -> list[Entry]:
        """All cards that have not expired, the last used first."""
        return catalog.entries(self.index, self.folder)

    def stats(self) -> dict[str, int]:
        """Counts and bytes: of all files, and of what the same cards would take by themselves."""
        return catalog.stats(self.index)

    def remove(self, digest: str) -> None:
        """Remove a card. Raises `CardNotFoundError`, or `StoreError` while it is leased."""
        try:
            with self.index.writing():
                self._require(digest)
                eviction.require_free(self.index, digest)
                eviction.drop(self.index, self.folder, digest)
        except StoreFullError:  # of what has only the row left nothing is seen any more
            if not self.folder.lost(digest):
                raise

    def lease(self, digest: str, seconds: float = 600.0) -> AbstractContextManager[None]:
        """Keep a card from expiry, eviction and removal while the block runs.

        A lease ends by itself after ``seconds``: its process may die. Raises `CardNotFoundError`.
        """
        require_number("seconds", seconds)
        return eviction.lease(self.index, self.folder, digest, seconds)

    def hold(self, digest: str, tool: str, state: State = "foreground") -> float:
        """The card's agent calls ``tool`` now: evict the card last while that is worth it.

        How long is learnt from the waits on this tool, against the price of bytes under `limit`
        (see `ttl`); after that the card is the first to go. ``state``: of the agent's app. Returns
        seconds, inf where nothing limits them. `get` ends the wait. Raises `CardNotFoundError`.
        """
        with self.index.writing():
            self._require(digest)
            return waiting.hold(self.index, digest, tool, state, self.limit)

    def gc(self, abandoned: float = ABANDONED_SECONDS) -> list[str]:
        """Drop expired cards, get below the limit, and clear away what nobody owns.

        ``abandoned``: age in seconds from which a file without a card is taken for one whose writer
        was killed. Returns the digests of the cards dropped.
        """
        require_number("abandoned", abandoned, least=-1)
        self.index.require_writable()
        sweep(self.folder, self.index, abandoned)  # first: it frees space on a full disk
        with self.index.writing():
            self.index.run("DELETE FROM lease WHERE until <= ?", time.time())
            waiting.give_up(self.index)
            dropped = eviction.expire(self.index, self.folder) + self.capacity.shrink()
        self.index.shrink()
        return dropped

    def audit(self) -> Audit:
        """Read every byte of every card and compare it with its digest."""
        return audit(self.folder, self.index)

    def _require(self, digest: str) -> None:
        catalog.require_there(self.index, self.folder, digest)

    def _clear(self, digest: str) -> None:
        """Finish the removal of a card whose remover was killed, or wait for one that was not."""
        with suppress(StoreError), self.index.writing():
            if self.folder.lost(digest):
                eviction.drop(self.index, self.folder, digest)
