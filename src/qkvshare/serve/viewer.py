"""The page at ``/``, and what it asks for: a store's cards and their lineage, and single cards.

The page itself holds nothing secret and needs no token; what it asks for is answered from the store
of whoever asks. Nothing is loaded from elsewhere, and a policy tells the browser so.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from importlib.resources import files
from typing import Any

import msgspec
from fastapi import APIRouter, HTTPException, Request, Response
from transformers import PreTrainedTokenizerBase

from ..store import Store
from .queue import FairQueue
from .viewing import card_view, overview

MOST_WAITING = 8  # looks of one tenant
_TYPES = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
}
_HEADERS = {
    # A prompt that breaks out of its text could still run and load nothing.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}


def router(
    store_of: Callable[[Request], Store],
    tokenizer: PreTrainedTokenizerBase,
    resumes: Callable[[Request], list[dict[str, Any]]],
) -> APIRouter:
    """Routes of the page: ``/``, ``/page/…``, ``/v1/view`` and ``/v1/view/{digest}``.

    Args:
        store_of: the store of who asks; raises the server's own 401 where nobody may.
        tokenizer: of the model in memory.
        resumes: the last of who asks, the newest first: each with ``time`` (seconds since 1970),
            ``card`` (digest), ``context_tokens``, ``new_tokens``, ``ttft_ms``, ``stages_ms`` in
            order; those up to the first token are shown, what they leave of it as "first token".

    Errors are left to the app: `CardNotFoundError` where a card is not in the store of who asks,
    `BusyError` where too many looks of theirs wait, and what `card_view` raises.
    """
    made = APIRouter(include_in_schema=False)
    queue = FairQueue(MOST_WAITING)

    async def in_turn(request: Request, look: Callable[[], dict[str, Any]]) -> Response:
        """One look at a time, tenant by tenant: it takes a processor, which answers need, too."""
        async with queue.slot(getattr(request.state, "tenant", None)):
            if await request.is_disconnected():
                return Response(status_code=499)  # nobody receives it
            return await asyncio.to_thread(lambda: _json(look()))

    folder = files("qkvshare.serve") / "page"
    parts = {part.name: part.read_bytes() for part in folder.iterdir() if part.is_file()}

    @made.get("/")
    def page() -> Response:
        return _part(parts, "index.html")

    @made.get("/page/{name}")
    def part(name: str) -> Response:
        return _part(parts, name)

    @made.get("/v1/view")
    async def view(request: Request) -> Response:
        store = store_of(request)
        return await in_turn(request, lambda: {**overview(store), "resumes": resumes(request)})

    @made.get("/v1/view/{digest}")
    async def one(request: Request, digest: str) -> Response:
        store = store_of(request)

        def look() -> dict[str, Any]:
            # `find` and not `get`: to look at a card is no use of it.
            return card_view(store.peek(store.find(digest)), tokenizer)

        return await in_turn(request, look)

    return made


def _part(parts: dict[str, bytes], name: str) -> Response:
    kind = _TYPES.get(name.rpartition(".")[2])
    if name not in parts or kind is None:
        raise HTTPException(404, "the page has no such part.")
    return Response(parts[name], headers=_HEADERS | {"Cache-Control": "no-cache"}, media_type=kind)


def _json(content: dict[str, Any]) -> Response:
    headers = _HEADERS | {"Cache-Control": "no-store"}
    return Response(msgspec.json.encode(content), headers=headers, media_type="application/json")
