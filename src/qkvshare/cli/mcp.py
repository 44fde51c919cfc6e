"""``qkvshare mcp``: a model and a store as an MCP server."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from typing import Annotated

import typer

from ..card.errors import ServeError
from ..serve.access import is_local
from .options import (
    KeyFile,
    Limit,
    Model,
    Root,
    TenantName,
    bytes_of,
    load_session,
    open_store,
    progress,
)


def mcp(
    model: Model,
    root: Root = None,
    tenant: TenantName = None,
    key: KeyFile = None,
    limit: Limit = None,
    http: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="Listen at /mcp here, instead of stdin."),
    ] = None,
    link: Annotated[
        str | None,
        typer.Option(
            metavar="URL", help="Where clients get big cards: URL/DIGEST; with --http, here."
        ),
    ] = None,
    big: Annotated[str, typer.Option(help="Larger cards are sent as links.")] = "1MB",
) -> None:
    """Serve the tools capture, resume, list_cards and inspect to MCP clients."""
    address = None if http is None else _address(http)
    most, store = bytes_of(big), open_store(root, tenant, key, limit)
    # Over stdio, the protocol owns stdout.
    with redirect_stdout(sys.stderr), progress.status("loading the model …"):
        try:
            from ..serve.limits import CARDS
            from ..serve.listen import run
            from ..serve.mcp import server
            from ..serve.mcp_http import http_app
        except ModuleNotFoundError as error:
            if error.name not in ("anyio", "mcp"):
                raise
            raise ServeError("this server needs its extra: pip install 'qkvshare[mcp]'") from error
        session = load_session(model)
    if address is None:
        server(session, store, link=link, big=most).run()
        return
    host, port = address
    served = server(session, store, link=link or f"http://{http}{CARDS}", big=most)
    progress.print(f"listening on http://{http}/mcp", markup=False)
    run(http_app(served, store), host, port, log_level="warning")


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not (port.isdecimal() and 0 < int(port) < 2**16):
        raise ServeError(f"{text!r} is not HOST:PORT; expected for example 127.0.0.1:8000.")
    if not is_local(host):
        raise ServeError(
            f"{host!r} can be reached by others, and this server has no tokens. Expected "
            "127.0.0.1, localhost or ::1; use an SSH tunnel from other machines."
        )
    return host, int(port)
