"""``/v1/cards``: put, get (any range), head, delete, list."""

from __future__ import annotations

import asyncio
import re
from typing import Annotated, Any

from fastapi import APIRouter, Request, Response
from fastapi import Path as InPath
from fastapi.responses import StreamingResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from ..card import CacheCard
from ..card.errors import CardSignatureError, QKVShareError
from ..card.passing import MEDIA_TYPE, Passing
from ..store import Store
from ..store.upload import Upload
from .schema import PutCard, Refused, StoredCard, StoredCards
from .service import Service

_RANGE = re.compile(r"bytes=(\d*)-(\d*)")
_REFUSED: dict[int | str, dict[str, Any]] = {
    status: {"model": Refused}
    for status in (400, 401, 403, 404, 408, 409, 413, 415, 416, 421, 422, 507)
}
_BYTES = {MEDIA_TYPE: {"schema": {"type": "string", "format": "binary"}}}
_FILE: dict[str, Any] = {"content": {MEDIA_TYPE: {}}, "description": "The card's file."}

Digest = Annotated[str, InPath(pattern=r"^[0-9a-f]{64}$")]


def router(service: Service) -> APIRouter:
    """The routes, for one server."""
    routes = APIRouter(prefix="/v1/cards", responses=_REFUSED)

    @routes.get("", response_model=StoredCards)
    async def list_cards(request: Request) -> StoredCards:
        """The tenant's cards, the last used first."""
        entries = await asyncio.to_thread(service.store(request).ls)
        names = ("agent", "tokens", "bytes", "put_at", "used_at", "expires_at", "hits")
        return StoredCards(
            data=[
                StoredCard(card=entry.digest, **{name: getattr(entry, name) for name in names})
                for entry in entries
            ]
        )

    @routes.post(
        "",
        status_code=201,
        response_model=PutCard,
        openapi_extra={"requestBody": {"required": True, "content": _BYTES}},
    )
    async def put(request: Request, response: Response, vouch: bool = False) -> PutCard:
        """Store a card for this model; the body is its file. It may be here under another digest:
        a tenant's cards have digests of the tenant's own. With `vouch` any prompt that begins like
        the card is answered from it, otherwise only those that name it."""
        store, announced = service.store(request), request.headers.get("content-length", "")
        with store.receive(int(announced) if announced.isdigit() else None) as upload:
            try:
                async for piece in request.stream():
                    await asyncio.to_thread(upload.write, piece)
            except ClientDisconnect as error:
                raise HTTPException(400, "the body ended too early.") from error
            digest, card = await asyncio.to_thread(_store, service, store, upload, vouch)
        service.metrics.bytes.labels("put").inc(card.nbytes)
        response.headers["Location"] = f"/v1/cards/{digest}"
        return PutCard(card=digest, tokens=card.tokens, bytes=card.nbytes)

    @routes.get("/{digest}", response_class=StreamingResponse, responses={200: _FILE, 206: _FILE})
    async def get(request: Request, digest: Digest) -> Response:
        """The card's file, or a range of its bytes."""
        store = service.store(request)
        passing = Passing(await asyncio.to_thread(store.get, digest))
        part = _part(request.headers.get("range"), passing.nbytes)
        headers = {**_headers(digest), "Content-Length": str(len(part))}
        if len(part) < passing.nbytes:
            headers["Content-Range"] = f"bytes {part.start}-{part.stop - 1}/{passing.nbytes}"
        service.metrics.bytes.labels("got").inc(len(part))
        return StreamingResponse(
            passing(part.start, part.stop),
            206 if len(part) < passing.nbytes else 200,
            headers,
            MEDIA_TYPE,
        )

    @routes.head("/{digest}", responses={200: {"description": "The card is here."}})
    async def head(request: Request, digest: Digest) -> Response:
        """Whether the card is here, and its length."""
        passing = Passing(await asyncio.to_thread(service.store(request).get, digest))
        headers = {**_headers(digest), "Content-Length": str(passing.nbytes)}
        return Response(None, 200, headers, MEDIA_TYPE)

    @routes.delete("/{digest}", status_code=204)
    async def delete(request: Request, digest: Digest) -> None:
        """Remove the card, unless it is in use."""
        await asyncio.to_thread(service.store(request).remove, digest)

    return routes


def _store(service: Service, store: Store, upload: Upload, vouch: bool) -> tuple[str, CacheCard]:
    """Check the card that has arrived, and put it; its digest in the store, and the card."""
    card = upload.card()
    service.session.require(card)  # before its bytes are in memory
    # A thin card can be decoded only together with what the store has.
    checked = card.verified() if card.thin else card.verify()
    card = CacheCard(card.manifest, checked, card.signature)
    upload.close()
    vouched = vouch or service.stores.trusts(card)
    if card.manifest.salt != store.salt:
        if card.signature is not None:
            raise CardSignatureError(
                "the card is signed, and digests here have another salt: its signature would be "
                "lost. Expected a card captured with this store's salt, or one without signature."
            )
        card = card.salted(store.salt)
    digest = store.put(card, vouched=vouched and not card.thin)
    if card.thin:
        try:
            store.get(digest).verify()
        except QKVShareError:
            store.remove(digest)
            raise
        store.put(card, vouched=vouched)
    return digest, card


def _headers(digest: str) -> dict[str, str]:
    return {
        "ETag": f'"{digest}"',
        "Accept-Ranges": "bytes",
        "Cache-Control": "private, immutable",
        "Content-Disposition": f'attachment; filename="{digest}.card"',
    }


def _part(wanted: str | None, length: int) -> range:
    """The bytes that a Range header asks for: one range, others are answered by all of it."""
    found = _RANGE.fullmatch(wanted or "")
    if found is None or found[1] == found[2] == "":
        return range(length)
    first, last = _number(found[1]), _number(found[2])
    if found[1] == "":
        start, stop = max(0, length - last), length
    else:
        start, stop = first, min(length, last + 1) if found[2] else length
        if found[2] and last < first:
            return range(length)
    if start >= stop:
        refused = {"Content-Range": f"bytes */{length}"}
        raise HTTPException(416, f"the card has {length:,} bytes, none in that range.", refused)
    return range(start, stop)


def _number(digits: str) -> int:
    """A number that a client wrote, as large as any file at most; "" is 0."""
    return min(int(digits[-19:] or 0), 1 << 62) if len(digits.lstrip("0")) < 19 else 1 << 62
