"""What is counted for Prometheus, and one line of log for each request."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from ..hf.session.answers import Answer, Prompt
from .errors import Receive, Scope, Send

log = logging.getLogger("qkvshare.serve")
_MS = tuple(digit * 10.0**power for power in range(-1, 6) for digit in (1, 2, 5))


class Metrics:
    """The counters of one server; each number comes with its denominator."""

    def __init__(self, gauges: Callable[[], dict[str, float]]) -> None:
        """``gauges``: called at each scrape."""
        registry = self.registry = CollectorRegistry()
        self.requests = Counter(
            "qkvshare_requests", "Requests answered.", ["route", "status"], registry=registry
        )
        self.refusals = Counter(
            "qkvshare_refusals", "Refused requests.", ["reason"], registry=registry
        )
        self.prompts = Counter(
            "qkvshare_prompts",
            "Prompts, by what they went on from: a card they named, one that matched, several that "
            "were composed, or text.",
            ["origin"],
            registry=registry,
        )
        self.tokens = Counter(
            "qkvshare_tokens",
            "Tokens: requested (all of the prompts), matched (a card had them), injected (and were "
            "not read), read, said.",
            ["kind"],
            registry=registry,
        )
        self.bytes = Counter(
            "qkvshare_card_bytes",
            "Bytes of cards put, got, injected and kept.",
            ["way"],
            registry=registry,
        )
        self.stages = Histogram(
            "qkvshare_stage_ms",
            "Milliseconds: queue, inject, read, first (token, from the turn on), say, keep, and "
            "overhead (all that is neither waiting nor the model's).",
            ["stage"],
            buckets=_MS,
            registry=registry,
        )
        self.registry.register(_Gauges(gauges))

    def count(self, prompt: Prompt, answer: Answer) -> None:
        """Count an answer."""
        origin = "text" if prompt.card is None else "named" if prompt.named else "matched"
        matched = 0 if prompt.card is None else prompt.card.tokens
        if prompt.parts is not None:
            origin, matched = "composed", answer.cached_tokens + answer.repaired_tokens
        self.prompts.labels(origin).inc()
        for kind, number in {
            "requested": answer.prompt_tokens,
            "matched": matched,
            "injected": answer.cached_tokens,
            "read": answer.prompt_tokens - answer.cached_tokens,
            "said": answer.new_tokens,
        }.items():
            self.tokens.labels(kind).inc(number)
        if prompt.card is not None and answer.cached_tokens:
            self.bytes.labels("injected").inc(prompt.card.nbytes)
        self.bytes.labels("kept").inc(answer.card_bytes)
        for stage, ms in answer.stages_ms.items():
            self.stages.labels(stage).observe(ms)

    def text(self) -> bytes:
        """All of it, in Prometheus' text format."""
        return generate_latest(self.registry)


class _Gauges(Collector):
    def __init__(self, ask: Callable[[], dict[str, float]]) -> None:
        self._ask = ask

    def collect(self) -> Iterator[GaugeMetricFamily]:
        for name, value in self._ask().items():
            yield GaugeMetricFamily(f"qkvshare_{name}", name.replace("_", " "), value)


class RequestLog:
    """Log and count requests (ASGI): who, what, how long, never a word of a prompt."""

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
            if status == 0:  # an answer that had begun is cut off instead
                status, state["refused"] = 500, "internal_error"
            raise
        finally:
            # The route's pattern, not the path: a client chooses the path.
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
