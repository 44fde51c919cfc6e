"""What a request may take."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from starlette.exceptions import HTTPException

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]


@dataclass(frozen=True)
class Limits:
    """Bytes of a body and of a card, tokens to say, requests that wait, seconds for each part.

    ``context``: tokens that an answer may go on from, those of a card included; None for what the
    model reads. ``seconds`` holds for the body to arrive, and again for an answer from its turn on.
    """

    body: int = 4 << 20
    card: int = 4 << 30
    tokens: int = 1024
    waiting: int = 16
    seconds: float = 600.0
    context: int | None = None


class BodyLimit:
    """Refuse a body that is too long as soon as that is known, and one that takes too long."""

    def __init__(self, app: Any, limits: Limits) -> None:
        """``limits.card`` is for the path of cards, ``limits.body`` for all others."""
        self._app, self._limits = app, limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request (ASGI)."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        most = self._limits.card if scope["path"] == "/v1/cards" else self._limits.body
        headers = dict(scope["headers"])
        announced = headers.get(b"content-length", b"0")
        loop = asyncio.get_running_loop()
        ends, got, whole = loop.time() + self._limits.seconds, 0, False

        async def counted() -> dict[str, Any]:
            nonlocal got, whole
            if whole:  # what comes now is that the client has gone
                return await receive()
            if announced.isdigit() and int(announced) > most:
                raise _too_long(most)
            try:
                async with asyncio.timeout_at(ends):
                    message = await receive()
            except TimeoutError as error:
                raise HTTPException(408, "the body took too long to arrive.") from error
            got += len(message.get("body", b""))
            whole = not message.get("more_body", False)
            if got > most:
                raise _too_long(most)
            return message

        await self._app(scope, counted, send)


def _too_long(most: int) -> HTTPException:
    return HTTPException(413, f"the body has more than {most:,} bytes, which is the limit here.")
