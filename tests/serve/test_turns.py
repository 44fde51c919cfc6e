"""The fair queue."""

from __future__ import annotations

import asyncio

import pytest

from qkvshare.card.errors import BusyError
from qkvshare.serve.turns import Turns


def test_tenants_take_turns_however_many_requests_one_has() -> None:
    async def run() -> list[str]:
        turns, served = Turns(waiting=10), []

        async def ask(tenant: str) -> None:
            await turns.take(tenant)
            served.append(tenant)
            await asyncio.sleep(0)
            turns.give_back()

        many = [asyncio.create_task(ask("many")) for _ in range(5)]
        await asyncio.sleep(0)
        few = [asyncio.create_task(ask("few")) for _ in range(2)]
        await asyncio.gather(*many, *few)
        assert not turns.busy
        assert turns.length == 0
        return served

    assert asyncio.run(run())[:6].count("few") == 2  # first come, first served would make it 1


def test_too_many_of_one_tenant_are_refused_and_another_is_not() -> None:
    async def run() -> None:
        turns = Turns(waiting=1)
        await turns.take("a")
        waits = asyncio.create_task(turns.take("a"))
        await asyncio.sleep(0)
        with pytest.raises(BusyError, match="1 requests"):
            await turns.take("a")
        other = asyncio.create_task(turns.take("b"))
        await asyncio.sleep(0)
        assert turns.length == 2
        turns.give_back()
        await waits
        turns.give_back()
        await other
        turns.give_back()
        assert not turns.busy

    asyncio.run(run())


@pytest.mark.parametrize("granted", [False, True])
def test_who_gives_up_waiting_blocks_nobody(granted: bool) -> None:
    async def run() -> None:
        turns = Turns(waiting=2)
        await turns.take("a")
        leaves = asyncio.create_task(turns.take("b"))
        stays = asyncio.create_task(turns.take("c"))
        await asyncio.sleep(0)
        if granted:
            turns.give_back()  # it is b's turn, who leaves before noticing
        leaves.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaves
        if not granted:
            turns.give_back()
        await asyncio.wait_for(stays, 1)
        turns.give_back()
        assert not turns.busy
        assert turns.length == 0

    asyncio.run(run())


def test_giving_up_and_giving_back_at_once() -> None:
    async def run() -> None:
        turns = Turns(waiting=2)
        await turns.take("a")
        leaves = asyncio.create_task(turns.take("b"))
        await asyncio.sleep(0)
        leaves.cancel()
        turns.give_back()
        with pytest.raises(asyncio.CancelledError):
            await leaves
        assert not turns.busy

    asyncio.run(run())
