"""``qkvshare serve``: the model and its cards over HTTP."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from ..card.errors import ServeError
from ..card.signing import read_trust
from .options import (
    MOST,
    CodecName,
    KeyFile,
    Limit,
    Model,
    ProfileFile,
    Root,
    bytes_of,
    finite,
    key_of,
    load_session,
    progress,
    root_of,
)


def serve(
    model: Model,
    root: Root = None,
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free port.")] = 8000,
    name: Annotated[
        str | None, typer.Option(help="The model's name for clients; by default --model.")
    ] = None,
    tokens: Annotated[
        Path | None,
        typer.Option(
            help="A file of lines TOKEN TENANT; needed to listen where others can reach the "
            "server. The tenant 'metrics' may read /metrics and nothing else."
        ),
    ] = None,
    key: KeyFile = None,
    trust: Annotated[
        Path | None,
        typer.Option(
            help="Public keys, one a line. A prompt finds an uploaded card only if one of these "
            "keys signed it; other uploaded cards must be named."
        ),
    ] = None,
    limit: Limit = None,
    codec: CodecName = None,
    profile: ProfileFile = None,
    reuse: Annotated[
        Literal["exact", "compose"],
        typer.Option(
            help="exact: a prompt is answered from the longest card that it begins with. compose: "
            "also from what cards have of it anywhere, which is approximate. Requests may say."
        ),
    ] = "exact",
    max_tokens: Annotated[
        int, typer.Option(min=1, max=MOST, help="The most tokens of an answer.")
    ] = 1024,
    max_context: Annotated[
        int | None,
        typer.Option(
            min=1, max=MOST, help="The most tokens before an answer; by default the model's."
        ),
    ] = None,
    max_body: Annotated[str, typer.Option(help="The largest request, except for cards.")] = "4MB",
    max_card: Annotated[str, typer.Option(help="The largest card that can be put.")] = "4GB",
    waiting: Annotated[
        int, typer.Option(min=1, max=MOST, help="How many requests of a tenant may wait.")
    ] = 16,
    seconds: Annotated[
        float,
        typer.Option(min=0.1, max=MOST, callback=finite, help="The longest answer."),
    ] = 600.0,
) -> None:
    """Serve a model: OpenAI's chat completions with hand-off, cards, metrics, a page at /."""
    try:
        import fastapi  # noqa: F401 - needed below; missed here
        import prometheus_client  # noqa: F401

        from ..serve.access import Access, Stores, require_host
        from ..serve.limits import Limits
        from ..serve.listen import run
    except ModuleNotFoundError as error:
        if error.name not in ("fastapi", "prometheus_client", "starlette", "uvicorn"):
            raise
        raise ServeError("the server needs its extra: pip install 'qkvshare[serve]'") from error

    # Errors in the options show before anything slow is imported.
    access = Access({}) if tokens is None else Access.load(tokens)
    require_host(host, access)
    size = None if limit is None else bytes_of(limit)
    limits = Limits(
        body=bytes_of(max_body),
        card=bytes_of(max_card),
        tokens=max_tokens,
        waiting=waiting,
        seconds=seconds,
        context=max_context,
    )
    if trust is not None:
        read_trust(trust)  # fails now if it is bad; each card reads it again
    stores = Stores(root_of(root).absolute(), access, key_of(key), size, trust)
    stores.all()
    with progress.status("loading the model …"):
        from ..codecs import default_codec, make_codec
        from ..hf.compose.prove import require_composable
        from ..hf.session.warmup import warm
        from ..profile import Profile
        from ..serve.app import create_app
        from ..serve.service import Service

        learned = None if profile is None else Profile.load(profile)
        chosen = None if codec is None else make_codec(codec, learned)
        session = load_session(model)
        session.codec = chosen or default_codec(session.identity.weights, learned)
        session.reuse = reuse
        if reuse == "compose":
            require_composable(session.model)
    with progress.status("warming up …"):
        warm(session)
    shown = name or (Path(model).name if Path(model).exists() else model)
    progress.print(f"{shown}, cards by {session.codec.name!r} in {stores.root}", markup=False)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    logging.captureWarnings(True)
    app = create_app(Service(session, shown, stores, limits))
    run(app, host, port, log_level="info")
