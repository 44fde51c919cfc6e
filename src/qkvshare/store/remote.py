"""`RemoteStore`: cards in S3-compatible object storage, or behind any other fsspec URL."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..card import CacheCard, Identity
from ..card.container import to_bytes
from ..card.digest import TokenIds, is_digest
from ..card.errors import CardError, CardFormatError, CardNotFoundError, CardThinError, StoreError
from ..card.manifest import Segment
from .audit import ABANDONED_SECONDS
from .catalog import Match, no_card_of
from .collecting import collect
from .eviction import require_number
from .folder import (
    SEGMENT,
    Assembled,
    own_segments,
    require_segment,
    segment_bytes,
    without_segments,
)
from .names import (
    agent_at,
    card_at,
    digest_in,
    index_names,
    last_part,
    matches,
    segment_at,
    shelves,
)
from .objects import Objects, parallel
from .prefixes import Prefixes
from .ranged import RangedTensors


@dataclass(frozen=True)
class RemoteEntry:
    """A card that is there; ``bytes`` of its header and ids, without segments."""

    digest: str
    bytes: int


class RemoteStore:
    """Cards below ``url``, for many machines at once. One object may serve many threads.

    A run of tokens that several cards have in common is kept once. Whoever can list the objects
    can find out whether a guessed prompt is there, and whoever can read them has it: give every
    tenant a place, with credentials, of its own.
    """

    def __init__(self, url: str, **storage_options: Any) -> None:
        """Name the place; nothing is asked of it yet.

        ``url``: such as ``s3://bucket/folder``; ``storage_options`` are those of its fsspec file
        system. Raises `StoreError`.
        """
        self.objects = Objects(url, storage_options)

    def put(self, card: CacheCard) -> str:
        """Store a card and return its digest. Segments that are there are not sent again.

        Segments go first, the card then, what `match` needs last; so a put that is killed has left
        no card, or one that can be got. A thin card is completed by the segments that are there.
        Raises `CardThinError`, `CardDigestError` for a damaged card, `StoreError`, and
        `CardWriteError` where files of this machine cannot be written.
        """
        own, names = own_segments(card), card.manifest.names
        condemned = {last_part(name) for name in self.objects.ls("condemned")}
        for name, size in zip(names, parallel(self._segment_size, names), strict=True):
            there = size is not None and name not in condemned
            if name not in own:
                if not there:
                    raise CardThinError(
                        f"the thin card {card.digest[:12]}… needs the segment {name[:12]}…, which "
                        "is not in this store, or about to go. Put its parent first, or the whole "
                        "card."
                    )
                continue
            # One of another size was cut short, where a service shows what is half written.
            if not there or size != segment_bytes(own[name]):
                self.objects.write(segment_at(name), to_bytes(own[name], {SEGMENT: name}))
                if name in condemned:
                    self.objects.remove(f"condemned/{name}")
        self.objects.write(card_at(card.digest), without_segments(card).to_bytes())
        if any(self._segment_size(name) is None for name in names if name in condemned):
            return self.put(card)  # gc was just removing it
        parallel(lambda name: self.objects.write(name, b""), index_names(card))
        return card.digest

    def get(self, digest: str, tokens: int | None = None) -> CacheCard:
        """The card of this digest, or its first ``tokens`` tokens (where a segment of it ends).

        Headers and ids are read now; a layer of a segment by one ranged read when it is asked for,
        and verified. Raises the `CardError` family or `StoreError`.
        """
        card = self._open_card(digest)
        if tokens not in (None, card.tokens):
            card = card.head(tokens)  # only ids are here yet, so nothing is read for it
        named = zip(card.manifest.names, card.manifest.segments, strict=True)
        opened = parallel(lambda pair: self._open_segment(*pair), named)
        return CacheCard(card.manifest, Assembled(card.tensors, opened), card.signature)

    def match(self, ids: Sequence[int] | TokenIds, identity: Identity) -> Match | None:
        """The longest prefix of a prompt's ``ids``, ``[tokens]``, that a card of this model has.

        As `Store.match`. Raises `StoreError`.
        """
        prefixes = Prefixes.of(ids, identity)
        for shelf in shelves(prefixes):
            for match in matches(self.objects.ls(shelf), prefixes):
                # A removal that was killed may have left the name without the card.
                if self.objects.size(card_at(match.card)) is not None:
                    return match
        return None

    def latest(self, agent: str) -> str:
        """Digest of the card that ``agent`` handed on last. Raises `CardNotFoundError`."""
        for name in sorted(map(last_part, self.objects.ls(agent_at(agent))), reverse=True):
            digest = name.rpartition("-")[2]
            if is_digest(digest) and self.objects.size(card_at(digest)) is not None:
                return digest
        raise no_card_of(agent)

    def ls(self) -> list[RemoteEntry]:
        """All cards, by digest."""
        listed = self.objects.ls("cards").items()
        cards = ((digest_in(name), size) for name, size in listed)
        return sorted((RemoteEntry(d, s) for d, s in cards if d), key=lambda entry: entry.digest)

    def remove(self, digest: str) -> None:
        """Remove a card; segments stay until `gc`, for other cards may have them.

        Raises `CardNotFoundError` or `StoreError`.
        """
        try:
            names = index_names(self._open_card(digest))
        except CardNotFoundError:
            raise
        except CardError:
            names = []  # damaged: gc finds what names it
        self.objects.remove(card_at(digest))
        parallel(self.objects.remove, names)

    def reindex(self) -> int:
        """Make what `match` and `latest` need, for cards that were uploaded as files; counts them.

        Cards that cannot be read are left out. Raises `StoreError`.
        """
        made = 0
        for entry in self.ls():
            try:
                names = index_names(self._open_card(entry.digest))
            except CardError:
                continue
            parallel(lambda name: self.objects.write(name, b""), names)
            made += 1
        return made

    def gc(self, grace: float = ABANDONED_SECONDS) -> list[str]:
        """Remove segments that no card names, by two calls ``grace`` seconds apart; returns names.

        See `collecting`. Raises `StoreError` while some card cannot be read, for its segments are
        not known.
        """
        require_number("grace", grace, least=-1)
        return collect(self.objects, self._names, grace)

    def _open_card(self, digest: str) -> CacheCard:
        """A card without its segments, ids verified. Raises the `CardError` family."""
        if not is_digest(digest):
            raise CardNotFoundError(f"{digest[:80]!r} is no digest; expected 64 hex digits.")
        card = CacheCard.opened(self.objects.tensors(card_at(digest)))
        if card.digest != digest:
            raise CardFormatError(
                f"{card_at(digest)} holds the card {card.digest[:12]}…; expected the one that it "
                "is named after. Somebody moved objects by hand."
            )
        return card

    def _open_segment(self, name: str, segment: Segment) -> RangedTensors:
        tensors = self.objects.tensors(segment_at(name))
        require_segment(tensors, name, segment)
        return tensors

    def _names(self, digest: str) -> list[str]:
        """Of a card's segments; none where it was removed just now. Raises `StoreError`."""
        try:
            return self._open_card(digest).manifest.names
        except CardNotFoundError:
            return []
        except CardError as error:
            raise StoreError(
                f"nothing was removed, for the card {digest} cannot be read: {error} "
                "Remove it, or put it again, then collect."
            ) from error

    def _segment_size(self, name: str) -> int | None:
        return self.objects.size(segment_at(name))
