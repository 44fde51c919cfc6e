"""``qkvshare mcp``: a model and a store as an MCP server."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from typing import Annotated

import typer

from ..card.errors import ServeError
from .options import KeyFile, Model, progress
from .store import Limit, Root, TenantName, bytes_of, open_store

_LOCAL = ("127.0.0.1", "localhost", "::1")


def mcp(
    model: Model,
    root: Root = None,
    tenant: TenantName = None,
    key: KeyFile = None,
    limit: Limit = None,
    http: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="Listen here, at /mcp, instead of stdin."),
    ] = None,
    link: Annotated[
        str | None,
        typer.Option(
            metavar="URL", help="Where clients get big cards: URL/DIGEST; by default here, if http."
        ),
    ] = None,
    big: Annotated[str, typer.Option(help="Cards of more bytes go by link.")] = "1MB",
) -> None:
    """Serve capture, resume, list_cards and inspect to MCP clients; see docs/mcp.md."""
    place = None if http is None else _place(http)
    most, store = bytes_of(big), open_store(root, tenant, key, limit)
    # Over stdio, stdout is the protocol's.
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
        from ..hf.attention import NAME
        from ..hf.model.load import load_model
        from ..hf.session.session import Session

        loaded, tokenizer = load_model(model)
        loaded.set_attn_implementation(NAME)  # sooner from a long context
        session = Session(loaded, tokenizer)
    if place is None:
        server(session, store, link=link, big=most).run()
        return
    host, port = place
    served = server(session, store, link=link or f"http://{http}{CARDS}", big=most)
    progress.print(f"listening on http://{http}/mcp", markup=False)
    run(http_app(served, store), host, port, log_level="warning")


def _place(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not (port.isdecimal() and 0 < int(port) < 2**16):
        raise ServeError(f"{text!r} is no HOST:PORT, as in 127.0.0.1:8000.")
    if host not in _LOCAL:
        raise ServeError(
            f"{host!r} can be reached by others, and this server asks nobody who they are. "
            f"Expected one of {', '.join(_LOCAL)}; from elsewhere, come through an SSH tunnel."
        )
    return host, int(port)
