"""Which requests may come in: checked before a byte of the body is read, in each of our servers.

A page from elsewhere in the user's browser can send requests to this machine. It can do so under a
host name of its own that it points to 127.0.0.1 (DNS rebinding), or in the forms that browsers
send across sites without asking. Both are refused here. So is a request without a valid token.
"""

from __future__ import annotations

import re
from typing import Any

from starlette.applications import Starlette

from ..card.container import MEDIA_TYPE
from .access import METRICS, Access, is_local
from .errors import Receive, Scope, Send, refuse
from .limits import CARDS, BodyLimit, Limits, path_of

_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^\[\]:/@\s]+)(:\d{1,5})?")
# Our answers are for programs and for our own page: no other page may frame or load them.
_HEADERS = {
    b"content-security-policy": b"default-src 'none'; frame-ancestors 'none'",
    b"x-content-type-options": b"nosniff",
    b"referrer-policy": b"no-referrer",
    b"cross-origin-resource-policy": b"same-origin",
}


def guard(app: Starlette, access: Access, limits: Limits, free: str = "") -> None:
    """Put `Gate` and, behind it, `BodyLimit` before ``app``."""
    app.add_middleware(BodyLimit, limits=limits)
    app.add_middleware(Gate, access=access, free=free)


class Gate:
    """Refuse requests that come from foreign pages, without a valid token, or as foreign types.

    An ASGI middleware. It puts the tenant into the request's state, and headers that restrict
    browsers onto every response.
    """

    def __init__(self, app: Any, access: Access, free: str) -> None:
        """``access``: the tokens. ``free``: a pattern of paths that need no token."""
        self._app, self._access, self._free = app, access, re.compile(free)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def restricted(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                has = {name.lower() for name, _ in message["headers"]}
                more = [each for each in _HEADERS.items() if each[0] not in has]
                message = {**message, "headers": [*message["headers"], *more]}
            await send(message)

        refused = self._refused(scope)
        if refused is None:
            await self._app(scope, receive, restricted)
        else:
            await refuse(scope, restricted, *refused)

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
                    "the token is missing or not valid here; expected Authorization: Bearer TOKEN."
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
