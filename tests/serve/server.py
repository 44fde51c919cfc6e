"""A server in a thread, for tests that need a real socket."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn
from fastapi.testclient import TestClient

from qkvshare import Raw
from qkvshare.card.container import MEDIA_TYPE
from qkvshare.hf.session.session import Session
from qkvshare.serve.access import Access, Stores
from qkvshare.serve.app import create_app
from qkvshare.serve.limits import Limits
from qkvshare.serve.listen import config
from qkvshare.serve.service import Service

from ..conftest import tiny_model, tiny_tokenizer

NAME = "tiny"
CARD = {"Content-Type": MEDIA_TYPE}


def talker(tokens: int = 4096) -> Session:
    """Says printable characters only: tokenized again they are the same ids."""
    model = tiny_model("llama", max_position_embeddings=tokens)
    model.generation_config.suppress_tokens = [*range(4), *range(99, 128)]
    return Session(model, tiny_tokenizer(), codec=Raw())


def tokens_file(folder: Path, **tokens: str) -> Path:
    """``tenant=token`` as the server reads them."""
    path = folder / "tokens"
    path.write_text("".join(f"{token} {tenant}\n" for tenant, token in tokens.items()))
    path.chmod(0o600)
    return path


class Local(TestClient):
    """A client on this machine, that says what it sends."""

    def __init__(self, app: Any, **options: Any) -> None:
        super().__init__(app, base_url="http://localhost", **options)

    def post(self, url: str, *, content: Any = None, headers: Any = None, **more: Any) -> Any:  # type: ignore[override]
        if content is not None:
            kind = MEDIA_TYPE if url == "/v1/cards" else "application/json"
            headers = {"Content-Type": kind, **(headers or {})}
        return super().post(url, content=content, headers=headers, **more)


def make_service(
    root: Path, session: Session, limits: Limits | None = None, tokens: Path | None = None
) -> Service:
    """With stores in ``root``."""
    access = Access({}) if tokens is None else Access.load(tokens)
    return Service(session, NAME, Stores(root, access), limits or Limits(tokens=64))


@contextmanager
def serving(app: Any) -> Iterator[str]:
    """Serve an ASGI application on a free port; gives its address."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        server = uvicorn.Server(config(app, "127.0.0.1", port, "error"))
        thread = threading.Thread(
            target=lambda: asyncio.run(server.serve(sockets=[listener])), daemon=True
        )
        thread.start()
        while not server.started:
            assert thread.is_alive()
            thread.join(0.01)
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            server.should_exit = True
            thread.join(20)
            assert not thread.is_alive()


@contextmanager
def serving_service(service: Service) -> Iterator[str]:
    """Serve ``service``."""
    with serving(create_app(service)) as address:
        yield address
