"""The HTTP application: routes, limits, errors, the request log."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError

from .. import __version__
from . import cards, completions, errors, viewer
from .gate import guard
from .metrics import RequestLog
from .service import Service

# Paths that show nobody's data, and so need no token.
FREE = r"/|/page/[^/]*|/health|/healthz|/openapi\.json"


def create_app(service: Service) -> FastAPI:
    """The server of ``service``, for uvicorn or another ASGI server."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        service.stopping.set()  # cuts short the answer that is being made
        service.model_thread.shutdown(cancel_futures=True)

    # The pages of /docs would load scripts from elsewhere, on the origin that holds a token.
    app = FastAPI(
        title="QKVShare", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None
    )
    errors.install(app, service.stores.root)
    app.include_router(completions.router(service))
    app.include_router(cards.router(service))
    app.include_router(viewer.router(service.store, service.session.tokenizer, service.resumes))

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        # Field and reason, never the value: it may be a prompt. There may be thousands of errors.
        first = next(iter(error.errors()), {"loc": (), "msg": "not valid"})
        field = ".".join(map(str, first["loc"][1:])) or "body"
        message = f"the request is malformed: {field}: {first['msg']}"
        return errors.answer(request, 400, errors.body(message, "malformed"))

    @app.get("/metrics", response_class=Response)
    def metrics() -> Response:
        """Counts for Prometheus; where tokens are needed, with one of the tenant `metrics`."""
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4")

    @app.get("/health")
    @app.get("/healthz")
    async def health() -> dict[str, str]:
        """Whether the server answers."""
        return {"status": "ok"}

    guard(app, service.access, service.limits, FREE)
    app.add_middleware(RequestLog, metrics=service.metrics)
    return app
