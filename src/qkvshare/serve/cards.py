"""``/v1/cards``: put, get (any range), head, delete, list."""

from __future__ import annotations

import asyncio
import re
import tempfile
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Request, Response
from fastapi import Path as InPath
from fastapi.responses import StreamingResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from ..card import CacheCard
from ..card.errors import CardSignatureError, CardWriteError
from ..card.passing import MEDIA_TYPE, Passing
from ..store import Store
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
    async def put(request: Request, response: Response) -> PutCard:
        """Store a card for this model; the body is its file. It may be here under another digest:
        a tenant's cards have digests of the tenant's own."""
        store = service.store(request)
        try:
            with tempfile.TemporaryDirectory(prefix=".put.", dir=store.root) as folder:
                path = Path(folder, "card")
                with path.open("wb") as file:
                    async for piece in request.stream():
                        await asyncio.to_thread(file.write, piece)
                digest, card = await asyncio.to_thread(_store, service, store, path)
        except ClientDisconnect as error:
            raise HTTPException(400, "the body ended too early.") from error
        except OSError as error:
            raise CardWriteError(
                f"the card cannot be written here: {error.strerror}. Try again when there is room."
            ) from error
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


def _store(service: Service, store: Store, path: Path) -> tuple[str, CacheCard]:
    card = CacheCard.load(path)
    card.manifest.identity.require(service.resident.identity)
    if card.manifest.salt != store.salt:
        if card.signature is not None:
            raise CardSignatureError(
                "the card is signed, and digests here have another salt: its signature would be "
                "lost. Expected a card captured with this store's salt, or one without signature."
            )
        card = card.salted(store.salt)
    return store.put(card), card


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
