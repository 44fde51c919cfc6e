"""The MCP server over HTTP, for this machine only; docs/mcp.md."""

from __future__ import annotations

from typing import Any

from anyio import to_thread
from mcp.server import MCPServer
from mcp.server.transport_security import TransportSecuritySettings
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response

from ..store import Store
from . import errors
from .access import Access
from .download import card_response
from .gate import guard
from .limits import CARDS, Limits
from .mcp import open_whole


def http_app(mcp: MCPServer[Any], store: Store) -> Starlette:
    """``mcp`` over HTTP at ``/mcp``, and card files of any size below `CARDS`."""

    @mcp.custom_route(CARDS + "/{digest}", ["GET"])  # type: ignore[untyped-decorator]
    async def send(request: Request) -> Response:
        card = await to_thread.run_sync(open_whole, store, request.path_params["digest"])
        return card_response(card, request)

    # The gate checks hosts and origins, as it does for our other servers.
    unchecked = TransportSecuritySettings(enable_dns_rebinding_protection=False)
    app = mcp.streamable_http_app(transport_security=unchecked)
    errors.install(app, store.root)
    guard(app, Access({}), Limits())
    return app
