"""One line of JSON for each request: who, what, how long, never a word of a prompt."""

from __future__ import annotations

import json
import logging
import time
from typing import Any

from .gate import Receive, Scope, Send
from .metrics import Metrics

log = logging.getLogger("qkvshare.serve")


class Journal:
    """Log and count requests (ASGI)."""

    def __init__(self, app: Any, metrics: Metrics) -> None:
        """``metrics`` counts what is logged."""
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun, status, sent = time.perf_counter(), 0, 0
        state = scope.setdefault("state", {})

        async def counted(message: dict[str, Any]) -> None:
            nonlocal status, sent
            if message["type"] == "http.response.start":
                status = message["status"]
            sent += len(message.get("body", b""))
            await send(message)

        try:
            await self._app(scope, receive, counted)
        except Exception:
            if status == 0:  # nothing was answered; what was begun is cut off
                status, state["refused"] = 500, "internal_error"
            raise
        finally:
            # The pattern, not the path: what a client made up is not logged.
            route = getattr(scope.get("route"), "path", "none")
            refused = state.get("refused")
            self._metrics.requests.labels(route, str(status)).inc()
            if refused is not None:
                self._metrics.refusals.labels(refused).inc()
            line = {
                "event": "request",
                "time": round(time.time(), 3),
                "method": scope["method"],
                "route": route,
                "status": status,
                "ms": round(1e3 * (time.perf_counter() - begun), 3),
                "bytes": sent,
                "tenant": state.get("tenant"),
                "refused": refused,
            }
            log.info(json.dumps({key: value for key, value in line.items() if value is not None}))
