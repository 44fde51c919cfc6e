"""The page at ``/``, and the JSON that it loads: a store's cards and lineage, and single cards.

The page itself holds nothing secret and needs no token. Its requests are answered from the store of
their tenant. It loads nothing from elsewhere, and a policy makes the browser enforce that.
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

MOST_WAITING = 8  # views of one tenant
_TYPES = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
}
_HEADERS = {
    # Even a prompt that became HTML could run and load nothing.
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
        store_of: the store of a request's tenant.
        tokenizer: of the model in memory.
        resumes: the tenant's last answers from cards, the newest first: each with ``time`` (seconds
            since 1970), ``parts`` of the prompt in order (``card``, a digest or None for text, and
            ``tokens``), whether it was ``composed``, ``ttft_ms`` and ``stages_ms`` in order.

    The app answers errors: `CardNotFoundError` for a card that is not in the tenant's store,
    `BusyError` if too many of the tenant's views wait, and what `card_view` raises.
    """
    routes, queue = APIRouter(include_in_schema=False), FairQueue(MOST_WAITING)
    folder = files("qkvshare.serve") / "page"
    page = {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}

    async def view(request: Request, make: Callable[[Store], dict[str, Any]]) -> Response:
        """One view at a time, round-robin by tenant: answers need the processor, too."""
        store = store_of(request)
        async with queue.slot(getattr(request.state, "tenant", None)):
            if await request.is_disconnected():
                return Response(status_code=499)  # nobody receives it
            return await asyncio.to_thread(lambda: _json(make(store)))

    @routes.get("/")
    def index() -> Response:
        return page_file("index.html")

    @routes.get("/page/{name}")
    def page_file(name: str) -> Response:
        kind = _TYPES.get(name.rpartition(".")[2])
        if name not in page or kind is None:
            raise HTTPException(404, "the page has no such file.")
        headers = _HEADERS | {"Cache-Control": "no-cache"}
        return Response(page[name], headers=headers, media_type=kind)

    @routes.get("/v1/view")
    async def view_store(request: Request) -> Response:
        return await view(request, lambda store: {**overview(store), "resumes": resumes(request)})

    @routes.get("/v1/view/{digest}")
    async def view_card(request: Request, digest: str) -> Response:
        # `peek` and not `get`: a view does not count as a use.
        return await view(
            request, lambda store: card_view(store.peek(store.find(digest)), tokenizer)
        )

    return routes


def _json(content: dict[str, Any]) -> Response:
    headers = _HEADERS | {"Cache-Control": "no-store"}
    return Response(msgspec.json.encode(content), headers=headers, media_type="application/json")
