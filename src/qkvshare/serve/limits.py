"""What a request may take."""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass
from typing import Any

from starlette.exceptions import HTTPException

from .errors import Receive, Scope, Send, refuse

CARDS = "/v1/cards"
# Enough for 4,096 messages of several parts. A value costs much more memory than its bytes, and an
# invalid one costs its error as well.
VALUES = 50_000
JSON_SECONDS = 60.0  # for a body of JSON to arrive
STALL_SECONDS = 30.0  # between two pieces of a body
_STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"?', re.DOTALL)


@dataclass(frozen=True)
class Limits:
    """What one request may use.

    Attributes:
        body: bytes of a body of JSON.
        card: bytes of a card.
        tokens: tokens of an answer.
        waiting: requests of one tenant that may wait.
        seconds: for the body to arrive, and again for the answer once the model is free.
        context: tokens before the answer, those of a card included; None for the model's own limit.
    """

    body: int = 4 << 20
    card: int = 4 << 30
    tokens: int = 1024
    waiting: int = 16
    seconds: float = 600.0
    context: int | None = None


class BodyLimit:
    """Refuse a body that is too long as soon as that is known, and one that arrives too slowly.

    A card passes through as it arrives. Any other body is JSON: it is read whole, and its values
    are counted before any object is made of them, so that its bytes bound its cost.
    """

    def __init__(self, app: Any, limits: Limits) -> None:
        """``limits.card`` is for the path of cards, ``limits.body`` for all others."""
        self._app, self._limits = app, limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request (ASGI)."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        card = path_of(scope) == CARDS
        most = self._limits.card if card else self._limits.body
        announced = dict(scope["headers"]).get(b"content-length", b"0")
        if announced.isdigit() and (len(announced) > 18 or int(announced) > most):
            await refuse(scope, send, 413, _too_long(most).detail)
            return
        seconds = self._limits.seconds if card else min(JSON_SECONDS, self._limits.seconds)
        arriving = _arriving(receive, most, seconds)
        if card:
            await self._app(scope, arriving, send)
            return
        body, more = bytearray(), True
        try:
            while more:
                message = await arriving()
                if message["type"] == "http.disconnect":
                    return  # nobody waits for an answer
                body += message.get("body", b"")
                more = message.get("more_body", False)
        except HTTPException as error:
            await refuse(scope, send, error.status_code, error.detail)
            return
        if values(body) > VALUES:
            limit = f"{VALUES:,} values in its lists and objects, which is the limit here"
            await refuse(scope, send, 400, f"the body has more than {limit}.")
            return
        whole: list[dict[str, Any]] = [{"type": "http.request", "body": bytes(body)}]

        async def once() -> dict[str, Any]:
            return whole.pop() if whole else await receive()

        await self._app(scope, once, send)


def _arriving(receive: Receive, most: int, seconds: float) -> Receive:
    """``receive``, bounded in bytes and time; raises `HTTPException` 408 or 413."""
    loop = asyncio.get_running_loop()
    ends, got, whole = loop.time() + seconds, 0, False

    async def arriving() -> dict[str, Any]:
        nonlocal got, whole
        if whole:  # the next message says that the client has gone
            return await receive()
        try:
            async with asyncio.timeout_at(min(ends, loop.time() + STALL_SECONDS)):
                message = await receive()
        except TimeoutError as error:
            raise HTTPException(408, "the body took too long to arrive.") from error
        got += len(message.get("body", b""))
        whole = not message.get("more_body", False)
        if got > most:
            raise _too_long(most)
        return message

    return arriving


def path_of(scope: Scope) -> str:
    """The path within our application, which may be mounted in another one."""
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", ""))


def values(body: bytes | bytearray) -> int:
    """An upper bound of the number of values in a body of JSON, without parsing it."""
    if len(body) <= VALUES:
        return len(body)
    bare = _STRING.sub(b"", body)
    return 1 + sum(bare.count(mark) for mark in (b",", b"[", b"{"))


def _too_long(most: int) -> HTTPException:
    return HTTPException(413, f"the body has more than {most:,} bytes, which is the limit here.")
