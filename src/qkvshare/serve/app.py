"""The application: routes, limits, refusals, the journal."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Response

from .. import __version__
from . import cards, completions, refusals, viewer
from .gate import Gate
from .journal import Journal
from .limits import BodyLimit
from .service import Service

# Paths that hold nothing of anybody's, and so need no token.
FREE = r"/|/page/[^/]*|/health|/healthz|/openapi\.json"


def create_app(service: Service) -> FastAPI:
    """The server of ``service``, for uvicorn or another ASGI server."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        service.stopping.set()  # what the model says now is cut short
        service.model_thread.shutdown(cancel_futures=True)

    # The pages of /docs would load scripts from elsewhere, on the origin that holds a token.
    app = FastAPI(
        title="QKVShare", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None
    )
    refusals.install(app, service.stores.root)
    app.include_router(completions.router(service))
    app.include_router(cards.router(service))
    page = viewer.router(service.store, service.session.tokenizer, service.resumes)
    app.include_router(page)

    @app.get("/metrics", response_class=Response)
    def metrics() -> Response:
        """Counts for Prometheus; where tokens are needed, with one of the tenant `metrics`."""
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4")

    @app.get("/health")
    @app.get("/healthz")
    async def health() -> dict[str, str]:
        """That the server is there."""
        return {"status": "ok"}

    app.add_middleware(BodyLimit, limits=service.limits)
    app.add_middleware(Gate, access=service.access, free=FREE)
    app.add_middleware(Journal, metrics=service.metrics)
    return app
