"""Errors as answers: a status, and the JSON that clients of OpenAI's API expect."""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse

from ..card import errors

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]

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
_CODES = {
    400: "malformed",
    401: "unauthorized",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    408: "body_too_slow",
    413: "body_too_long",
    415: "unsupported_media_type",
    416: "range_not_satisfiable",
    421: "misdirected",
}
UNEXPECTED = "the server failed; its log says how. The same request may fail again."
_INSTEAD = {
    "/v1/completions": "POST /v1/chat/completions, with messages",
    "/v1/responses": "POST /v1/chat/completions, with messages",
    "/v1/chat/completions": "POST /v1/chat/completions",
}


def body(message: str, code: str, param: str | None = None) -> dict[str, Any]:
    """The JSON of an error; ``param``: the field of the request that it is about."""
    kind = "internal_error" if code == "internal_error" else "invalid_request_error"
    error = {"message": message, "type": kind, "code": code, "param": param}
    # A quote from a request may be half of a surrogate pair, which cannot be sent.
    sent = {name: at and at.encode("utf-8", "replace").decode() for name, at in error.items()}
    return {"error": sent}


def body_of(error: errors.QKVShareError, root: Path) -> dict[str, Any]:
    """The JSON of one of our errors, without the place of the stores (``root``) on this machine.

    Its code is ``card_not_found`` for `CardNotFoundError`.
    """
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", type(error).__name__.removesuffix("Error"))
    param = getattr(error, "parameter", None)
    if isinstance(error, errors.ContextLengthExceededError):
        param = "messages"
    return body(str(error).replace(str(root), "the store"), words.lower(), param)


async def refuse(scope: Scope, send: Send, status: int, message: str) -> None:
    """Answer a request before the application sees it (ASGI)."""
    content = body(message, _CODES[status])
    scope.setdefault("state", {})["refused"] = _CODES[status]
    headers = [(b"content-type", b"application/json")]
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    sent = b"" if scope["method"] == "HEAD" else json.dumps(content).encode()
    headers.append((b"content-length", str(len(sent)).encode()))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": sent})


def answer(
    request: Request, status: int, content: dict[str, Any], headers: Any = None
) -> JSONResponse:
    """An error of the application; the request's ``state.refused`` tells the log its code."""
    request.state.refused = content["error"]["code"]
    return JSONResponse(content, status, headers)


def install(app: Starlette, root: Path) -> None:
    """Answer every error of ``app`` in one form; ``root``: the folder of the stores."""

    async def ours(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, errors.QKVShareError)
        status = next(status for kind, status in _STATUS.items() if isinstance(error, kind))
        return answer(request, status, body_of(error, root))

    async def http(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        message = str(error.detail)
        if message in ("Not Found", "Method Not Allowed"):  # no route has it
            path = request.url.path
            instead = _INSTEAD.get(path.rstrip("/"), "what /openapi.json lists")
            message = f"there is no {request.method[:20]} {path[:80]} here; expected {instead}."
        content = body(message, _CODES.get(error.status_code, "refused"))
        return answer(request, error.status_code, content, error.headers)

    async def unexpected(request: Request, error: Exception) -> JSONResponse:
        return answer(request, 500, body(UNEXPECTED, "internal_error"))

    app.add_exception_handler(errors.QKVShareError, ours)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(Exception, unexpected)
