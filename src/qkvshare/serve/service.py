"""What all HTTP routes share: the model, the queue for it, and the tenants' stores."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from fastapi import Request

from ..card import Span
from ..card.errors import OverdueError
from ..hf.session.answers import Answer, Prompt
from ..hf.session.session import Session
from ..hf.tools.calls import ToolCall
from ..store import Store
from .access import Access, Stores
from .limits import Limits
from .metrics import Metrics
from .queue import FairQueue
from .schema import ChatRequest
from .work import work_of

_RESUMES = 50  # of each tenant, for the viewer


class GoneError(Exception):
    """The client has disconnected: nobody waits for an answer."""


class Service:
    """One model and the tenants' stores, for the routes of one server."""

    def __init__(self, session: Session, name: str, stores: Stores, limits: Limits) -> None:
        """``name``: what clients call the model."""
        self.session, self.name, self.stores, self.limits = session, name, stores, limits
        self.queue = FairQueue(limits.waiting)
        self.metrics = Metrics(self._gauges)
        self.stopping = threading.Event()
        # One thread, so that torch has one set of workers.
        self.model_thread = ThreadPoolExecutor(1, "model")
        self._resumes: dict[str | None, deque[dict[str, Any]]] = defaultdict(
            lambda: deque(maxlen=_RESUMES)
        )
        self.running: set[asyncio.Task[Any]] = set()

    @property
    def access(self) -> Access:
        """Whose tokens are whose."""
        return self.stores.access

    def tenant(self, request: Request) -> str | None:
        """The tenant that the gate found; None where no token is needed."""
        return getattr(request.state, "tenant", None)

    def store(self, request: Request) -> Store:
        """The store of the request's tenant."""
        return self.stores.of(self.tenant(request))

    def resumes(self, request: Request) -> list[dict[str, Any]]:
        """The last answers from cards that the tenant got, the newest first."""
        return list(self._resumes[self.tenant(request)])

    async def answer(
        self, request: Request, ask: ChatRequest, streaming: Callable[[str | ToolCall], None]
    ) -> tuple[Prompt, Answer]:
        """Wait for the model and answer; ``streaming`` gets the text piece by piece, and calls.

        Stops when the client goes, when the time is over, and when the server stops. Raises
        `BusyError`, `OverdueError`, `GoneError`, and what `Session.prompt` and `answer` do.
        """
        tenant, loop = self.tenant(request), asyncio.get_running_loop()
        work = work_of(ask, self.session, self.limits, self.stores.of(tenant), streaming)
        begun, called_off = time.perf_counter(), threading.Event()
        gone = asyncio.ensure_future(_gone(request))
        try:
            await self._acquire(tenant, gone)
            waited = time.perf_counter() - begun
            answering = loop.run_in_executor(
                self.model_thread, work, lambda: called_off.is_set() or self.stopping.is_set()
            )
            # However this request ends, the model is free when its thread is.
            answering.add_done_callback(lambda _: self.queue.release())
            await _first(answering, gone, self.limits.seconds)
            called_off.set()
            prompt, answer = await answering
            if answer.finish == "cancelled":
                raise self._why_cancelled(gone)
        except GoneError:
            self.metrics.refusals.labels("client_gone").inc()
            raise
        finally:
            called_off.set()
            gone.cancel()
        self._count(tenant, prompt, answer, waited, time.perf_counter() - begun)
        return prompt, answer

    def _why_cancelled(self, gone: asyncio.Future[None]) -> Exception:
        if gone.done():
            return GoneError()
        if self.stopping.is_set():
            return OverdueError("the server stops; ask again when it is back.")
        limit = f"{self.limits.seconds:g} seconds, which is the limit here"
        return OverdueError(f"the answer took longer than {limit}.")

    async def _acquire(self, tenant: str | None, gone: asyncio.Future[None]) -> None:
        """Wait for the model. Raises `BusyError`, and `GoneError` if the client goes first."""
        slot = asyncio.ensure_future(self.queue.acquire(tenant))

        def release(slot: asyncio.Future[None]) -> None:
            if not slot.cancelled() and slot.exception() is None:
                self.queue.release()

        try:
            await _first(slot, gone)
            if not slot.done():
                raise GoneError
            slot.result()
        except BaseException:
            slot.cancel()
            slot.add_done_callback(release)
            raise

    def _count(
        self, tenant: str | None, prompt: Prompt, answer: Answer, waited: float, took: float
    ) -> None:
        self.metrics.count(prompt, answer)
        model = sum(ms for name, ms in answer.stages_ms.items() if name != "first")
        self.metrics.stages.labels("queue").observe(1e3 * waited)
        self.metrics.stages.labels("overhead").observe(1e3 * (took - waited) - model)
        if answer.cached_tokens:
            self._resumes[tenant].appendleft(
                {
                    "time": time.time(),
                    "parts": _parts(prompt, answer),
                    "composed": answer.composed_tokens > 0,
                    "ttft_ms": answer.stages_ms["first"],
                    "stages_ms": answer.stages_ms,
                }
            )

    def _gauges(self) -> dict[str, float]:
        stats = [store.stats() for store in self.stores.all()]
        return {
            "waiting": self.queue.length,
            "busy": float(self.queue.busy),
            "stored_cards": sum(each["cards"] for each in stats),
            "stored_bytes": sum(each["bytes"] for each in stats),
        }


def _parts(prompt: Prompt, answer: Answer) -> list[dict[str, Any]]:
    """Where the tokens of a prompt came from, in order: each part's card, None for text."""
    if prompt.card is not None:
        known = answer.cached_tokens
        found = [(prompt.card.digest, known), (None, answer.prompt_tokens - known)]
    else:
        found = [
            (part.card.digest if isinstance(part, Span) else None, len(part))
            for part in prompt.parts or []
        ]
    return [{"card": card, "tokens": tokens} for card, tokens in found if tokens]


async def _gone(request: Request) -> None:
    """Return when the client has disconnected; the body has been read by then."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _first(
    work: asyncio.Future[Any], gone: asyncio.Future[None], seconds: float | None = None
) -> None:
    """Wait for the work, but no longer than the client does."""
    waited: set[asyncio.Future[Any]] = {work, gone}
    await asyncio.wait(waited, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
