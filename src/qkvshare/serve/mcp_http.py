"""The MCP server over HTTP, for this machine only; docs/mcp.md."""

from __future__ import annotations

from typing import Any

from anyio import to_thread
from mcp.server import MCPServer
from mcp.server.transport_security import TransportSecuritySettings
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from ..card.errors import CardNotFoundError, QKVShareError
from ..card.passing import MEDIA_TYPE, Passing
from ..store import Store
from .access import Access
from .gate import CARDS, Gate
from .limits import BodyLimit, Limits
from .mcp import known


def http_app(mcp: MCPServer[Any], store: Store) -> Starlette:
    """``mcp`` over HTTP at ``/mcp``, and card files of any size below `CARDS`."""

    def find(digest: str) -> Passing:
        return Passing(store.folder.open_card(known(store, digest)))

    @mcp.custom_route(CARDS + "/{digest}", ["GET"])  # type: ignore[untyped-decorator]
    async def send(request: Request) -> Response:
        try:
            passing = await to_thread.run_sync(find, request.path_params["digest"])
        except QKVShareError as error:
            missing = isinstance(error, CardNotFoundError)
            return Response(str(error), 404 if missing else 500, media_type="text/plain")
        headers = {"Content-Length": str(passing.nbytes)}
        return StreamingResponse(passing(), 200, headers, MEDIA_TYPE)

    # The gate checks hosts and origins, as it does for our other servers.
    unchecked = TransportSecuritySettings(enable_dns_rebinding_protection=False)
    app = mcp.streamable_http_app(transport_security=unchecked)
    app.add_middleware(BodyLimit, limits=Limits())
    app.add_middleware(Gate, access=Access({}), free="")
    return app
