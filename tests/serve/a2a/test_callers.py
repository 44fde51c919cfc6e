"""Who may ask an agent, and that nobody sees what others asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest
from a2a.server.context import ServerCallContext
from a2a.types.a2a_pb2 import Task
from starlette.applications import Starlette
from starlette.routing import Mount

from qkvshare import Raw
from qkvshare.card.errors import ServeError
from qkvshare.hf.session.session import Session
from qkvshare.serve.a2a import URI, app, callers
from qkvshare.serve.access import Access, Stores
from qkvshare.serve.limits import Limits
from qkvshare.store import Store

from ..server import tokens_file
from .agents import HERE, run, said, sdk, served, user

RED, BLUE = "red-token-0123456789", "blue-token-0123456789"
READ = "The tide is high at noon."
JSON = {"Content-Type": "application/json"}


@pytest.fixture
def stores(tmp_path: Path) -> Stores:
    """Of two tenants."""
    return Stores(tmp_path / "cards", Access.load(tokens_file(tmp_path, red=RED, blue=BLUE)))


def bearer(client: httpx.AsyncClient, token: str | None) -> None:
    client.headers.pop("Authorization", None)
    if token is not None:
        client.headers["Authorization"] = f"Bearer {token}"


async def rpc(client: httpx.AsyncClient, method: str, headers: Any = None, **params: Any) -> Any:
    body = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
    versioned = {"A2A-Version": "1.0", **(headers or {})}
    return await client.post(f"{HERE}/", json=body, headers=versioned)


def test_nobody_sees_what_others_asked(session: Session, stores: Stores) -> None:
    async def work() -> None:
        async with served(session, stores, inline=0) as client:
            bearer(client, RED)
            task = await sdk(user(READ, context_id="talk"), client, HERE, URI)
            place = task.artifacts[0].parts[1].url
            mine = (await rpc(client, "ListTasks")).json()["result"]
            assert [each["id"] for each in mine["tasks"]] == [task.id]
            assert (await client.get(place)).status_code == 200

            bearer(client, BLUE)
            assert (await rpc(client, "ListTasks")).json()["result"]["tasks"] == []
            for method in ("GetTask", "CancelTask", "SubscribeToTask"):
                answer = await rpc(client, method, id=task.id)
                assert "not found" in answer.json()["error"]["message"].lower()
            assert (await client.get(place)).status_code == 404
            other = await sdk(user("When?", context_id="talk"), client)
            assert other.artifacts[0].parts[0].text == said(session, "When?")

            for token in (None, "wrong-token-0123456789"):
                bearer(client, token)
                for answer in (await rpc(client, "ListTasks"), await client.get(place)):
                    assert answer.status_code == 401
            card = await client.get(f"{HERE}/.well-known/agent-card.json")
            assert card.json()["securitySchemes"]["bearer"]

    run(work())
    assert len(stores.of("red").ls()) == 1
    assert stores.of("blue").ls() == []


def test_an_agent_without_tokens_lists_no_tasks(session: Session, store: Store) -> None:
    async def work() -> None:
        async with served(session, store) as client:
            task = await sdk(user(READ), client)
            refused = (await rpc(client, "ListTasks")).json()["error"]
            assert "by its id" in refused["message"]
            got = await rpc(client, "GetTask", id=task.id)
            assert got.json()["result"]["id"] == task.id

    run(work())


def test_an_agent_without_tokens_is_this_machines(session: Session, stores: Stores) -> None:
    for url in ("http://agent.test", "http://0.0.0.0:8000", "https://10.0.0.7/", "nowhere"):
        with pytest.raises(ServeError, match="tokens"):
            app(session, stores.of("red"), base_url=url)
        app(session, stores, base_url=url)


def test_foreign_pages_are_refused(session: Session, store: Store) -> None:
    async def work() -> None:
        async with served(session, store) as client:
            for headers, status in (
                ({"Host": "evil.example"}, 421),
                ({"Origin": "https://evil.example"}, 403),
                ({"Origin": "null"}, 403),
                ({"Content-Type": "text/plain"}, 415),
            ):
                answer = await rpc(client, "ListTasks", headers)
                assert answer.status_code == status, headers

    run(work())


def test_it_can_be_part_of_another_application(session: Session, stores: Stores) -> None:
    """With the same paths free and guarded."""
    agent = app(session, stores, base_url=f"{HERE}/agent")
    whole = Starlette(routes=[Mount("/agent", agent)])

    async def work() -> None:
        transport = httpx.ASGITransport(whole)
        async with httpx.AsyncClient(transport=transport, base_url=HERE) as client:
            card = await client.get("/agent/.well-known/agent-card.json")
            assert card.status_code == 200
            assert (await client.post("/agent/", json={})).status_code == 401

    run(work())


def test_bodies_are_bounded(session: Session, store: Store) -> None:
    """20 MB took a minute and 5.5 GB."""

    async def work() -> None:
        async with served(session, store) as client:
            long = b'{"a": "' + b"x" * Limits().body + b'"}'
            many = b'{"jsonrpc": "2.0", "params": [' + b"{}," * 1_000_000 + b"0]}"
            for content, status in ((long, 413), (many, 400)):
                answer = await client.post(f"{HERE}/", content=content, headers=JSON)
                assert answer.status_code == status

    run(work())


def test_old_tasks_make_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(callers, "MOST_TASKS", 3)
    monkeypatch.setattr(callers, "MOST_BYTES", 5000)
    tasks, red = callers.Tasks(), ServerCallContext(user=callers.Caller("red"))
    blue = ServerCallContext(user=callers.Caller("blue"))

    async def work() -> list[str]:
        await tasks.save(Task(id="b"), blue)
        for name in "12324":
            await tasks.save(Task(id=name), red)
        kept = [name for name in "1234" if await tasks.get(name, red)]
        await tasks.save(Task(id="big", context_id="x" * 4990), red)
        assert [name for name in "1234" if await tasks.get(name, red)] == []
        assert await tasks.get("big", red)
        assert await tasks.get("b", blue)
        return kept

    assert run(work()) == ["2", "3", "4"]


def test_a_client_of_protocol_0_3_gets_an_answer(session: Session, store: Store) -> None:
    """As a2a-sdk 0.3 sends it: it looks for ``url`` in the agent card, and knows no version 1."""

    async def work() -> None:
        async with served(session, store) as client:
            card = (await client.get(f"{HERE}/.well-known/agent-card.json")).json()
            assert card["protocolVersion"].startswith("0.3")
            assert card["preferredTransport"] == "JSONRPC"
            message = {
                "kind": "message",
                "messageId": "m",
                "role": "user",
                "parts": [{"kind": "text", "text": READ}],
            }
            body = {"jsonrpc": "2.0", "id": 1, "method": "message/send"}
            asked = {**body, "params": {"message": message}}
            task = (await client.post(card["url"], json=asked)).json()["result"]
            assert task["status"]["state"] == "completed"
            assert task["artifacts"][0]["parts"][0]["text"] == said(session, READ)

    run(work())
    assert isinstance(session.codec, Raw)
