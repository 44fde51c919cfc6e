"""``/v1/cards``: put, get (any range), head, delete, list."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Request, Response
from fastapi import Path as InPath
from fastapi.responses import StreamingResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from ..card import CacheCard
from ..card.container import MEDIA_TYPE
from ..store import adopt
from .download import card_response
from .schema import ErrorBody, PutCard, StoredCard, StoredCards
from .service import Service

_REFUSED: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorBody}
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
        return StoredCards(data=[StoredCard(**asdict(entry)) for entry in entries])

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

            def accept(card: CacheCard) -> bool:
                service.session.require(card)
                return vouch or service.stores.trusts(card)

            card = await asyncio.to_thread(adopt, store, upload, accept)
        service.metrics.bytes.labels("put").inc(card.nbytes)
        response.headers["Location"] = f"/v1/cards/{card.digest}"
        return PutCard(card=card.digest, tokens=card.tokens, bytes=card.nbytes)

    @routes.get("/{digest}", response_class=StreamingResponse, responses={200: _FILE, 206: _FILE})
    async def get(request: Request, digest: Digest) -> Response:
        """The card's file, or a range of its bytes."""
        card = await asyncio.to_thread(service.store(request).get, digest)
        response = card_response(card, request)
        service.metrics.bytes.labels("got").inc(int(response.headers["Content-Length"]))
        return response

    @routes.head("/{digest}", responses={200: {"description": "The card is here."}})
    async def head(request: Request, digest: Digest) -> Response:
        """Whether the card is here, and its length."""
        return card_response(await asyncio.to_thread(service.store(request).get, digest), request)

    @routes.delete("/{digest}", status_code=204)
    async def delete(request: Request, digest: Digest) -> None:
        """Remove the card, unless it is in use."""
        await asyncio.to_thread(service.store(request).remove, digest)

    return routes
