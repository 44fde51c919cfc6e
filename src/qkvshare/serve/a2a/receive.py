"""From a card part to a card in the receiver's own store, or to the reason why not."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from contextlib import nullcontext

import httpx
from a2a.types.a2a_pb2 import Part

from ...card import CacheCard
from ...card.errors import CardDigestError, CardFormatError, CardThinError
from ...card.signing import require_signature
from ...hf.session.session import Session
from ...store import Store, adopt
from .extension import Announced, Receiver, card_part
from .wire import Fetch, careful


async def receive(
    parts: Iterable[Part],
    session: Session,
    store: Store,
    fetch: Fetch,
    client: httpx.AsyncClient | None = None,
    home: str = "",
) -> tuple[str | None, str]:
    """The digest of the card of ``parts``, which is in ``store`` then, or the reason to use text.

    What is known before a byte is fetched is a reason: no card, another model, a codec that is not
    here, an origin or a size that `Fetch` does not allow. What goes wrong after that is an error,
    since the text in its place would hide it. ``home`` is the URL that the client's credentials are
    for; they are sent nowhere else. Raises the `CardError` family, `IdentityError`,
    `StoreError`.
    """
    part = card_part(parts)
    if part is None:
        return None, "there is no card beside the text."
    announced = Announced.read(part)
    here = await asyncio.to_thread(Receiver.of, session.identity)
    reason = here.refuses(announced.identity, announced.codecs)
    reason = reason or fetch.refuses(part.url, announced.bytes)
    if reason:
        return None, reason
    with store.receive(announced.bytes) as upload:
        if part.HasField("url"):
            async with (
                nullcontext(client) if client else httpx.AsyncClient() as http,
                careful(http, home, fetch.origins, fetch.seconds, whole=False) as known,
            ):
                await fetch.write(upload.write, part.url, announced.bytes, known)
        elif len(part.raw) != announced.bytes:
            raise CardFormatError(
                f"the card part has {len(part.raw):,} bytes; {announced.bytes:,} were announced. "
                "It was cut short or changed; ask its agent again."
            )
        else:
            await asyncio.to_thread(upload.write, part.raw)

        def accept(card: CacheCard) -> bool:
            _require_announced(card, announced, fetch)
            session.require(card)
            # Without trusted keys nobody knows what its state says: no prompt finds it by its ids.
            return fetch.trust is not None

        card = await asyncio.to_thread(adopt, store, upload, accept)
    return card.digest, ""


def _require_announced(card: CacheCard, announced: Announced, fetch: Fetch) -> None:
    """Raise unless a card is signed as ``fetch`` wants it, the announced one, and whole."""
    if fetch.trust is not None:
        require_signature(card.digest, card.signature, fetch.trust)
    if card.digest != announced.digest:
        raise CardDigestError(
            f"the card that came is {card.digest[:12]}…, announced was "
            f"{announced.digest[:12]}…. Ask its agent again."
        )
    if card.thin:
        raise CardThinError(
            f"the card lacks the bytes of its first {card.thin} segments; an agent hands on whole "
            "cards. Ask for one."
        )
