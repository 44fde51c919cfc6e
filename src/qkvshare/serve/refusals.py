"""Errors as answers: a status, and the JSON that clients of OpenAI's API expect."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from ..card import errors
from .gate import content as content

# The first class that fits; a card of another model is a conflict, not a malformed request.
_STATUS: dict[type[errors.QKVShareError], int] = {
    errors.CardNotFoundError: 404,
    errors.CardExpiredError: 410,
    errors.CardThinError: 409,
    errors.CardError: 422,
    errors.IdentityError: 409,
    errors.ProfileError: 409,
    errors.BusyError: 429,
    errors.OverdueError: 504,
    errors.StoreFullError: 507,
    errors.CardWriteError: 507,
    errors.StoreError: 409,
    errors.QKVShareError: 400,
}
_NAMES = {401: "unauthorized", 404: "not_found", 405: "method_not_allowed", 408: "body_too_slow",
          413: "body_too_long", 416: "range_not_satisfiable"}  # fmt: skip


def status_of(error: errors.QKVShareError) -> int:
    """The HTTP status of an error."""
    return next(status for kind, status in _STATUS.items() if isinstance(error, kind))


def code_of(error: errors.QKVShareError) -> str:
    """``card_not_found`` for `CardNotFoundError`."""
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", type(error).__name__.removesuffix("Error"))
    return words.lower()


def param_of(error: errors.QKVShareError) -> str | None:
    """The field of the request that the error is about, where it is about one."""
    if isinstance(error, errors.ContextLengthExceededError):
        return "messages"
    return getattr(error, "parameter", None)


def message_of(error: errors.QKVShareError, root: Path) -> str:
    """What the error says, without where on this machine the store is."""
    return str(error).replace(str(root), "the store")


UNEXPECTED = "the server failed; its log says how. The same request may fail again."
_INSTEAD = {
    "/v1/completions": "POST /v1/chat/completions, with messages",
    "/v1/responses": "POST /v1/chat/completions, with messages",
    "/v1/chat/completions": "POST /v1/chat/completions",
}


def _no_route(request: Request) -> str:
    path = request.url.path
    instead = _INSTEAD.get(path.rstrip("/"), "what /openapi.json lists")
    return f"there is no {request.method[:20]} {path[:80]} here; expected {instead}."


def install(app: FastAPI, root: Path) -> None:
    """Answer every error in one form; each request's ``state.refused`` says why.

    ``root``: of the stores, which is nobody's business.
    """

    def refuse(
        request: Request,
        status: int,
        message: str,
        code: str,
        headers: Any = None,
        param: str | None = None,
    ) -> JSONResponse:
        request.state.refused = code
        return JSONResponse(content(message, code, param), status, headers)

    @app.exception_handler(errors.QKVShareError)
    async def ours(request: Request, error: errors.QKVShareError) -> JSONResponse:
        said, code = message_of(error, root), code_of(error)
        return refuse(request, status_of(error), said, code, param=param_of(error))

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> JSONResponse:
        code, said = _NAMES.get(error.status_code, "refused"), str(error.detail)
        if said in ("Not Found", "Method Not Allowed"):  # no route has it
            said = _no_route(request)
        return refuse(request, error.status_code, said, code, error.headers)

    @app.exception_handler(Exception)
    async def unexpected(request: Request, error: Exception) -> JSONResponse:
        return refuse(request, 500, UNEXPECTED, "internal_error")

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        # Where and what, never the value: it may be a prompt.
        # One is enough, and there may be thousands.
        found = "".join(
            f"{'.'.join(map(str, each['loc'][1:])) or 'body'}: {each['msg']}"
            for each in error.errors()[:1]
        )
        return refuse(request, 400, f"the request is malformed: {found}", "malformed")
