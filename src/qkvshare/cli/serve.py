"""``qkvshare serve``: the model and its cards over HTTP."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Annotated

import typer

from ..card.errors import ServeError
from ..card.signing import read_trust
from .options import MOST, CodecName, KeyFile, Model, ProfileFile, finite, key_of, progress
from .store import Limit, Root, bytes_of, root_of


def serve(
    model: Model,
    root: Root = None,
    host: Annotated[str, typer.Option(help="Where to listen.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
    name: Annotated[
        str | None, typer.Option(help="What clients call the model; by default as given here.")
    ] = None,
    tokens: Annotated[
        Path | None,
        typer.Option(
            help="A file of lines TOKEN TENANT; needed to listen where others can reach it. The "
            "tenant 'metrics' may read /metrics and nothing else."
        ),
    ] = None,
    key: KeyFile = None,
    trust: Annotated[
        Path | None,
        typer.Option(
            help="Public keys, one a line: prompts find cards that were put here if one of these "
            "signed them; others are used where they are named."
        ),
    ] = None,
    limit: Limit = None,
    codec: CodecName = None,
    profile: ProfileFile = None,
    max_tokens: Annotated[
        int, typer.Option(min=1, max=MOST, help="Tokens of an answer at most.")
    ] = 1024,
    max_context: Annotated[
        int | None,
        typer.Option(
            min=1, max=MOST, help="Tokens before it at most; by default what the model reads."
        ),
    ] = None,
    max_body: Annotated[str, typer.Option(help="Of a request, cards apart.")] = "4MB",
    max_card: Annotated[str, typer.Option(help="Of a card that is put.")] = "4GB",
    waiting: Annotated[
        int, typer.Option(min=1, max=MOST, help="Requests of a tenant that may wait.")
    ] = 16,
    seconds: Annotated[
        float, typer.Option(min=0.1, max=MOST, callback=finite, help="Of an answer at most.")
    ] = 600.0,
) -> None:
    """Serve one model: OpenAI's chat completions with hand-off, cards, metrics, and a page at /."""
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

    # What can be refused is refused before anything slow is imported.
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
        read_trust(trust)  # again for each card, so that it can be changed
    stores = Stores(root_of(root).absolute(), access, key_of(key), size, trust)
    stores.all()
    with progress.status("loading the model …"):
        from ..codecs import default_codec, make_codec
        from ..hf.attention import NAME
        from ..hf.model.load import load_model
        from ..hf.session.session import Session
        from ..hf.session.warmup import warm
        from ..profile import Profile
        from ..serve.app import create_app
        from ..serve.service import Service

        learned = None if profile is None else Profile.load(profile)
        chosen = None if codec is None else make_codec(codec, learned)
        loaded, tokenizer = load_model(model)
        loaded.set_attn_implementation(NAME)  # sooner from a long context
        session = Session(loaded, tokenizer)
        session.codec = chosen or default_codec(session.identity.weights, learned)
    with progress.status("compiling kernels, a minute at the first start …"):
        warm(session)
    called = name or (Path(model).name if Path(model).exists() else model)
    progress.print(f"{called}, cards by {session.codec.name!r} in {stores.root}", markup=False)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    logging.captureWarnings(True)
    app = create_app(Service(session, called, stores, limits))
    run(app, host, port, log_level="info")
