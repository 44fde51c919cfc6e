"""One request at a time for the model; tenants take turns, whoever asks how often."""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque

from ..card.errors import BusyError


class Turns:
    """A fair queue. Used from one event loop.

    Attributes:
        busy: whether somebody has the model.
    """

    def __init__(self, waiting: int) -> None:
        """``waiting``: how many requests of one tenant may wait."""
        self._most, self.busy = waiting, False
        self._waiting: OrderedDict[str | None, deque[asyncio.Future[None]]] = OrderedDict()

    @property
    def length(self) -> int:
        """How many wait."""
        return sum(map(len, self._waiting.values()))

    async def take(self, tenant: str | None) -> None:
        """Return when it is ``tenant``'s turn; who has had it calls `give_back`.

        Raises `BusyError` where too many of the tenant's wait already.
        """
        if not self.busy:
            self.busy = True
            return
        queue = self._waiting.setdefault(tenant, deque())
        if len(queue) >= self._most:
            raise BusyError(
                f"{len(queue)} requests of yours wait already, which is the limit. Try later."
            )
        turn = asyncio.get_running_loop().create_future()
        queue.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():  # it was ours just then
                self.give_back()
            elif turn in queue:
                queue.remove(turn)
                self._clear(tenant)
            raise

    def give_back(self) -> None:
        """Let the next one in: the first request of the tenant that was served longest ago."""
        while self._waiting:
            tenant, queue = next(iter(self._waiting.items()))
            turn = queue.popleft()
            self._waiting.move_to_end(tenant)
            self._clear(tenant)
            if not turn.cancelled():
                turn.set_result(None)
                return
        self.busy = False

    def _clear(self, tenant: str | None) -> None:
        if tenant in self._waiting and not self._waiting[tenant]:
            del self._waiting[tenant]
