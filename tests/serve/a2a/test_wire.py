"""Asking an agent that is hostile: it gets no credentials of others, and fills no memory."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from a2a.types.a2a_pb2 import Artifact, Task, TaskState

from qkvshare.card.errors import AgentError
from qkvshare.hf.session.answers import Keep
from qkvshare.hf.session.session import Session
from qkvshare.serve.a2a import Fetch, Taken, ask, take, wire
from qkvshare.serve.a2a.extension import answer_parts
from qkvshare.store import Store

from .agents import SHORT, run, user

HOME, OTHER, THIRD = "http://home.test", "http://other.test", "http://third.test"
READ = "The tide is high at noon."
SECRET = {"Authorization": "Bearer of-home-0123456789", "X-Api-Key": "mine"}


def card_for(url: str, **more: Any) -> dict[str, Any]:
    """An agent's card that says it is at ``url``."""
    at = {"url": url, "protocolBinding": "JSONRPC", "protocolVersion": "1.0"}
    return {
        "name": "a",
        "description": "a",
        "version": "1",
        "supportedInterfaces": [at],
        "capabilities": {},
        "defaultInputModes": ["text/plain"],
        "defaultOutputModes": ["text/plain"],
        "skills": [],
        **more,
    }


def completed(request: httpx.Request, *, artifacts: Any = None) -> httpx.Response:
    task = {
        "id": "1",
        "contextId": "1",
        "status": {"state": "TASK_STATE_COMPLETED"},
        "artifacts": artifacts or [{"artifactId": "1", "parts": [{"text": "noon"}]}],
    }
    result = {"jsonrpc": "2.0", "id": json.loads(request.content)["id"], "result": {"task": task}}
    return httpx.Response(200, json=result)


class Net:
    """Agents without a network; keeps what each host was sent."""

    def __init__(self, card: Any, answer: Callable[[httpx.Request], Any] = completed) -> None:
        self.card, self.answer = card, answer
        self.sent: dict[str, list[httpx.Request]] = {}

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        self.sent.setdefault(request.url.host, []).append(request)
        if request.url.path.startswith("/.well-known"):
            made = self.card if isinstance(self.card, httpx.Response) else None
            return made or httpx.Response(200, json=self.card)
        found = self.answer(request)
        return await found if asyncio.iscoroutine(found) else found

    def client(self, **options: Any) -> httpx.AsyncClient:
        transport = httpx.MockTransport(self)
        return httpx.AsyncClient(
            transport=transport, headers=SECRET, cookies={"c": "mine"}, **options
        )


def asking(net: Net, session: Session, store: Store, fetch: Fetch | None = None) -> Taken:
    async def work() -> Taken:
        async with net.client(auth=("me", "word"), follow_redirects=True) as client:
            return await ask(HOME, READ, session=session, store=store, fetch=fetch, client=client)

    return run(work())


def secrets(request: httpx.Request) -> set[str]:
    return {"authorization", "x-api-key", "cookie"} & set(request.headers)


def test_the_agent_itself_gets_the_credentials(session: Session, store: Store) -> None:
    net = Net(card_for(f"{HOME}/"))
    assert asking(net, session, store).text == "noon"
    assert len(net.sent["home.test"]) == 2
    for request in net.sent["home.test"]:
        assert secrets(request) == {"authorization", "x-api-key", "cookie"}


@pytest.mark.parametrize(
    "url",
    [f"{OTHER}/", "http://home.test:81/", "https://home.test/", "http://home.test@other.test/"],
)
def test_a_card_that_names_another_origin_is_not_followed(
    session: Session, store: Store, url: str
) -> None:
    net = Net(card_for(url))
    with pytest.raises(AgentError, match="not its own origin"):
        asking(net, session, store)
    assert set(net.sent) == {"home.test"}
    assert len(net.sent["home.test"]) == 1


def test_a_listed_origin_is_asked_without_the_credentials(session: Session, store: Store) -> None:
    net = Net(card_for(f"{OTHER}/a"))
    assert asking(net, session, store, Fetch(origins=(OTHER,))).text == "noon"
    (request,) = net.sent["other.test"]
    assert secrets(request) == set()


@pytest.mark.parametrize("where", ["card", "answer"])
def test_no_redirect_is_followed(session: Session, store: Store, where: str) -> None:
    away = httpx.Response(307, headers={"Location": f"{OTHER}/"})
    net = Net(away if where == "card" else card_for(f"{HOME}/"), lambda _: away)
    with pytest.raises(AgentError, match="cannot be asked"):
        asking(net, session, store, Fetch(origins=(OTHER,)))
    assert set(net.sent) == {"home.test"}


async def endless() -> AsyncIterator[bytes]:
    while True:
        yield b" " * (1 << 20)


async def hanging() -> AsyncIterator[bytes]:
    yield b" "
    await asyncio.sleep(3600)


BOMB = gzip.compress(b" " * (64 << 20))
MANY = b"[" + b"{}," * 1_000_000 + b"0]"


def hostile(kind: str) -> httpx.Response:
    if kind == "bomb":
        stream = httpx.ByteStream(BOMB)
        return httpx.Response(200, headers={"Content-Encoding": "gzip"}, stream=stream)
    if kind == "many":
        return httpx.Response(200, content=MANY)
    if kind == "deep":
        return httpx.Response(200, content=b"[" * 40_000)
    if kind == "list":
        return httpx.Response(200, json=[])
    return httpx.Response(200, content=hanging() if kind == "hanging" else endless())


@pytest.mark.parametrize("kind", ["bomb", "endless", "hanging", "many", "deep", "list"])
@pytest.mark.parametrize("where", ["card", "answer"])
def test_answers_are_bounded(
    session: Session, store: Store, kind: str, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire, "MOST", 4 << 20)
    card = hostile(kind) if where == "card" else card_for(f"{HOME}/")
    net = Net(card, lambda _: hostile(kind))
    fetch = Fetch(seconds=0.2 if kind == "hanging" else 60)
    with pytest.raises(AgentError):
        asking(net, session, store, fetch)


def test_a_card_is_fetched_with_the_credentials_of_its_own_origin_only(
    session: Session, store: Store, tmp_path: Path
) -> None:
    theirs = Store(tmp_path / "theirs")
    prompt = session.prompt(theirs, [{"role": "user", "content": READ}])
    kept = session.answer(prompt, SHORT, store=theirs, keep=Keep("reader"))
    card = theirs.get(str(kept.card))
    net = Net({}, lambda _: httpx.Response(200, content=card.to_bytes()))

    def task(at: str) -> Task:
        made = Task(
            artifacts=[Artifact(parts=answer_parts("yes", card, at, 0))], history=[user("x")]
        )
        made.status.state = TaskState.TASK_STATE_COMPLETED
        return made

    async def work() -> None:
        for base in ("", HOME):
            for at in (HOME, OTHER):
                async with net.client(base_url=base) as client:
                    fetch = Fetch(origins=(HOME, OTHER))
                    taken = await take(task(at), session, store, fetch=fetch, client=client)
                    assert taken.card == card.digest
        seen = [bool(secrets(each)) for each in net.sent["home.test"]]
        assert seen == [False, True]
        assert [bool(secrets(each)) for each in net.sent["other.test"]] == [False, False]

    run(work())
