"""One request at a time for the model; tenants alternate, however many requests one has."""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from ..card.errors import BusyError


class FairQueue:
    """Gives one holder at a time the model, round-robin by tenant. Used from one event loop.

    Attributes:
        busy: whether a request holds the model.
    """

    def __init__(self, waiting: int) -> None:
        """``waiting``: how many requests of one tenant may wait."""
        self._most, self.busy = waiting, False
        self._waiting: OrderedDict[str | None, deque[asyncio.Future[None]]] = OrderedDict()

    @property
    def length(self) -> int:
        """How many requests wait."""
        return sum(map(len, self._waiting.values()))

    @asynccontextmanager
    async def slot(self, tenant: str | None) -> AsyncIterator[None]:
        """Hold the model while the block runs. Raises `BusyError` as `acquire` does."""
        await self.acquire(tenant)
        try:
            yield
        finally:
            self.release()

    async def acquire(self, tenant: str | None) -> None:
        """Wait until ``tenant`` may use the model; `release` ends that.

        Raises `BusyError` if too many requests of the tenant wait already.
        """
        if not self.busy:
            self.busy = True
            return
        queue = self._waiting.setdefault(tenant, deque())
        if len(queue) >= self._most:
            raise BusyError(
                f"{len(queue)} requests of yours wait already, which is the limit. Try later."
            )
        granted = asyncio.get_running_loop().create_future()
        queue.append(granted)
        try:
            await granted
        except asyncio.CancelledError:
            if granted.done() and not granted.cancelled():  # given up just after it was granted
                self.release()
            elif granted in queue:
                queue.remove(granted)
                self._drop_if_empty(tenant)
            raise

    def release(self) -> None:
        """Let the next request in: the first one of the tenant that was served longest ago."""
        while self._waiting:
            tenant, queue = next(iter(self._waiting.items()))
            granted = queue.popleft()
            self._waiting.move_to_end(tenant)
            self._drop_if_empty(tenant)
            if not granted.cancelled():
                granted.set_result(None)
                return
        self.busy = False

    def _drop_if_empty(self, tenant: str | None) -> None:
        if tenant in self._waiting and not self._waiting[tenant]:
            del self._waiting[tenant]
