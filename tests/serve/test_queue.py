"""The fair queue."""

from __future__ import annotations

import asyncio

import pytest

from qkvshare.card.errors import BusyError
from qkvshare.serve.queue import FairQueue


def test_tenants_take_turns_however_many_requests_one_has() -> None:
    async def run() -> list[str]:
        queue, served = FairQueue(waiting=10), []

        async def ask(tenant: str) -> None:
            await queue.acquire(tenant)
            served.append(tenant)
            await asyncio.sleep(0)
            queue.release()

        many = [asyncio.create_task(ask("many")) for _ in range(5)]
        await asyncio.sleep(0)
        few = [asyncio.create_task(ask("few")) for _ in range(2)]
        await asyncio.gather(*many, *few)
        assert not queue.busy
        assert queue.length == 0
        return served

    assert asyncio.run(run())[:6].count("few") == 2  # first come, first served would make it 1


def test_too_many_of_one_tenant_are_refused_and_another_is_not() -> None:
    async def run() -> None:
        queue = FairQueue(waiting=1)
        await queue.acquire("a")
        waits = asyncio.create_task(queue.acquire("a"))
        await asyncio.sleep(0)
        with pytest.raises(BusyError, match="1 requests"):
            await queue.acquire("a")
        other = asyncio.create_task(queue.acquire("b"))
        await asyncio.sleep(0)
        assert queue.length == 2
        queue.release()
        await waits
        queue.release()
        await other
        queue.release()
        assert not queue.busy

    asyncio.run(run())


@pytest.mark.parametrize("granted", [False, True])
def test_who_gives_up_waiting_blocks_nobody(granted: bool) -> None:
    async def run() -> None:
        queue = FairQueue(waiting=2)
        await queue.acquire("a")
        leaves = asyncio.create_task(queue.acquire("b"))
        stays = asyncio.create_task(queue.acquire("c"))
        await asyncio.sleep(0)
        if granted:
            queue.release()  # it is b's turn, who leaves before noticing
        leaves.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaves
        if not granted:
            queue.release()
        await asyncio.wait_for(stays, 1)
        queue.release()
        assert not queue.busy
        assert queue.length == 0

    asyncio.run(run())


def test_giving_up_and_giving_back_at_once() -> None:
    async def run() -> None:
        queue = FairQueue(waiting=2)
        await queue.acquire("a")
        leaves = asyncio.create_task(queue.acquire("b"))
        await asyncio.sleep(0)
        leaves.cancel()
        queue.release()
        with pytest.raises(asyncio.CancelledError):
            await leaves
        assert not queue.busy

    asyncio.run(run())
