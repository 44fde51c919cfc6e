"""Who may come in: checked before a byte of the body is read, for every server of ours.

A page from elsewhere in the user's browser can send requests to this machine. It can do so under a
host name of its own that it points to 127.0.0.1 (DNS rebinding), or in the forms that browsers
send across sites without asking. Both are refused here. So is a request without a good token.
"""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable
from typing import Any

from ..card.passing import MEDIA_TYPE
from .access import METRICS, Access, is_local

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]

CARDS = "/v1/cards"
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^\[\]:/@\s]+)(:\d{1,5})?")
# Our answers are for programs and for our own page: no other page may frame or load them.
_HEADERS = {
    b"content-security-policy": b"default-src 'none'; frame-ancestors 'none'",
    b"x-content-type-options": b"nosniff",
    b"referrer-policy": b"no-referrer",
    b"cross-origin-resource-policy": b"same-origin",
}


class Gate:
    """Refuse requests that come from foreign pages, without a good token, or as foreign types.

    An ASGI middleware. It puts the tenant into the request's state, and headers that keep
    browsers careful onto every response.
    """

    def __init__(self, app: Any, access: Access, free: str) -> None:
        """``access``: whose tokens are whose. ``free``: a pattern of paths that need no token."""
        self._app, self._access, self._free = app, access, re.compile(free)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def careful(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                has = {name.lower() for name, _ in message["headers"]}
                more = [each for each in _HEADERS.items() if each[0] not in has]
                message = {**message, "headers": [*message["headers"], *more]}
            await send(message)

        refused = self._refused(scope)
        if refused is None:
            await self._app(scope, receive, careful)
        else:
            await refuse(scope, careful, *refused)

    def _refused(self, scope: Scope) -> tuple[int, str] | None:
        """The status and message of a refusal; None where the request may come in."""
        sent = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        path = path_of(scope)
        host, origin = sent.get("host", ""), sent.get("origin")
        named = _HOST.fullmatch(host)
        # With tokens the name does not matter: a foreign page has none.
        if not self._access.needed and not (named and is_local(named[1])):
            return 421, (
                f"without tokens only this machine is served, and {host[:80]!r} is not one of its "
                "names; expected the host 127.0.0.1, localhost or [::1]."
            )
        if origin is not None and origin.lower().partition("://")[2] != host.lower():
            return 403, "the request comes from a page of another origin; expected none but ours."
        if sent.get("sec-fetch-site") in ("cross-site", "same-site") and not (
            sent.get("sec-fetch-mode") == "navigate" and path == "/"
        ):
            return 403, "the request comes from another site; open the page itself instead."
        if self._access.needed and not self._free.fullmatch(path):
            tenant = self._access.tenant(sent.get("authorization"))
            if tenant is None or (tenant == METRICS) != (path == "/metrics"):
                return 401, (
                    "no token, or one that is not good here; expected Authorization: Bearer TOKEN."
                )
            scope.setdefault("state", {})["tenant"] = tenant
        if scope["method"] in ("POST", "PUT", "PATCH"):
            expected = MEDIA_TYPE if path == CARDS else "application/json"
            found = sent.get("content-type", "").partition(";")[0].strip().lower()
            if found != expected:
                return 415, (
                    f"the body's Content-Type is {found[:80]!r}; expected Content-Type: {expected}."
                )
        return None


def path_of(scope: Scope) -> str:
    """The path within our application, which may be mounted in another one."""
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", ""))


_CODES = {400: "malformed", 401: "unauthorized", 403: "forbidden", 408: "body_too_slow",
          413: "body_too_long", 415: "unsupported_media_type", 421: "misdirected"}  # fmt: skip


async def refuse(scope: Scope, send: Send, status: int, message: str) -> None:
    """Answer a request before the application sees it, in the form of all our refusals."""
    code = _CODES[status]
    scope.setdefault("state", {})["refused"] = code
    headers = [(b"content-type", b"application/json")]
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    body = b"" if scope["method"] == "HEAD" else json.dumps(content(message, code)).encode()
    headers.append((b"content-length", str(len(body)).encode()))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def content(message: str, code: str, param: str | None = None) -> dict[str, Any]:
    """The body of a refusal; ``param``: the field that it is about."""
    kind = "internal_error" if code == "internal_error" else "invalid_request_error"
    error = {"message": message, "type": kind, "code": code, "param": param}
    # What is quoted from a request may be half of a surrogate pair, which cannot be sent.
    sent = {name: at and at.encode("utf-8", "replace").decode() for name, at in error.items()}
    return {"error": sent}
