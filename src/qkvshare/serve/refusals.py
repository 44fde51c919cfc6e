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


def message_of(error: errors.QKVShareError, root: Path) -> str:
    """What the error says, without where on this machine the store is."""
    return str(error).replace(str(root), "the store")


def install(app: FastAPI, root: Path) -> None:
    """Answer every error in one form; each request's ``state.refused`` says why.

    ``root``: of the stores, which is nobody's business.
    """

    def refuse(
        request: Request, status: int, message: str, code: str, headers: Any = None
    ) -> JSONResponse:
        request.state.refused = code
        return JSONResponse(content(message, code), status, headers)

    @app.exception_handler(errors.QKVShareError)
    async def ours(request: Request, error: errors.QKVShareError) -> JSONResponse:
        return refuse(request, status_of(error), message_of(error, root), code_of(error))

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> JSONResponse:
        code = _NAMES.get(error.status_code, "refused")
        return refuse(request, error.status_code, str(error.detail), code, error.headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        # Where and what, never the value: it may be a prompt.
        # One is enough, and there may be thousands.
        found = "".join(
            f"{'.'.join(map(str, each['loc'][1:])) or 'body'}: {each['msg']}"
            for each in error.errors()[:1]
        )
        return refuse(request, 400, f"the request is malformed: {found}", "malformed")
