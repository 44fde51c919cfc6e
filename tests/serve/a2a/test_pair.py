"""Two agents in two processes, over loopback, through the SDK's own client and server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from a2a.client import create_client
from a2a.types.a2a_pb2 import SendMessageRequest, TaskState

from qkvshare.serve.a2a import MEDIA_TYPE, URI, Fetch, ask
from qkvshare.store import Store

from .agents import HERE, SHORT, process, run, said, sdk, served, tiny_resident, user

READ, ASK, MORE = "The tide is high at noon.", "When?", "And then?"


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of an agent in another process, whose cards are all too large for answers."""
    with process(tmp_path_factory.mktemp("reader"), inline=0) as url:
        yield url


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "cards")


@pytest.mark.slow
def test_an_agent_goes_on_from_anothers_answer_as_if_it_had_read_all(
    reader: str, store: Store
) -> None:
    session = tiny_resident()
    taken = run(ask(reader, READ, session=session, store=store))
    assert taken.text == said(session, READ)
    assert taken.reason == ""
    assert [p.WhichOneof("content") for p in taken.task.artifacts[0].parts] == ["text", "url"]
    assert taken.task.artifacts[0].parts[1].url.startswith(f"{reader}/cards/")
    card = store.get(taken.card)
    assert [hop.agent for hop in card.manifest.lineage] == ["reader"]
    answer = session.answer(taken.prompt(session, store, ASK), SHORT)
    assert answer.text == said(session, READ, taken.text, ASK)
    assert answer.cached_tokens == card.tokens


def test_a_client_without_the_extension_gets_the_text(reader: str) -> None:
    task = run(sdk(user(READ), url=reader))
    (artifact,) = task.artifacts
    assert [part.text for part in artifact.parts] == [said(tiny_resident(), READ)]
    assert MEDIA_TYPE not in {part.media_type for part in artifact.parts}
    assert not artifact.extensions


def test_a_client_as_the_sdk_makes_it_gets_the_text_as_a_stream(reader: str) -> None:
    async def work() -> list[str]:
        asked = await create_client(reader)
        request = SendMessageRequest(message=user(READ))
        events = [event async for event in asked.send_message(request)]
        await asked.close()
        assert events[-1].status_update.status.state == TaskState.TASK_STATE_COMPLETED
        return [p.text for e in events for p in e.artifact_update.artifact.parts]

    assert run(work()) == [said(tiny_resident(), READ)]


def test_an_agent_with_other_weights_gets_the_text_and_the_reason(
    reader: str, store: Store
) -> None:
    other = tiny_resident(seed=1)
    taken = run(ask(reader, READ, session=other, store=store))
    assert taken.card is None
    assert "weights" in taken.reason
    assert len(taken.task.artifacts[0].parts) == 1
    assert store.ls() == []
    answer = other.answer(taken.prompt(other, store, ASK), SHORT)
    assert answer.text == said(other, READ, said(tiny_resident(), READ), ASK)
    assert answer.cached_tokens == 0


def test_a_card_goes_on_through_a_third_agent(reader: str, store: Store, tmp_path: Path) -> None:
    """The first answer's parts are sent on; the third agent fetches the card by itself."""
    session, third = tiny_resident(), Store(tmp_path / "third")
    first = run(ask(reader, READ, session=session, store=store))

    async def send_on(fetch: Fetch) -> object:
        async with served(session, third, fetch=fetch) as client:
            given = first.task.artifacts[0].parts
            return await ask(HERE, ASK, session=session, store=store, given=given, client=client)

    second = run(send_on(Fetch(origins=(reader,))))
    assert second.text == said(session, READ, first.text, ASK)
    assert third.get(first.card).digest == first.card
    answer = session.answer(second.prompt(session, store, MORE), SHORT)
    assert answer.text == said(session, READ, first.text, ASK, second.text, MORE)
    refused = run(send_on(Fetch()))
    assert "origin" in refused.task.artifacts[0].metadata[URI]["reason"]
    assert refused.text == said(session, f"{first.text}\n{ASK}")


def test_only_cards_that_were_handed_on_are_served(reader: str, store: Store) -> None:
    session = tiny_resident()
    taken = run(ask(reader, READ, session=session, store=store))
    served = httpx.get(f"{reader}/cards/{taken.card}")
    assert served.status_code == 200
    assert served.headers["content-type"] == MEDIA_TYPE
    assert len(served.content) == store.get(taken.card).nbytes
    for name in ("0" * 64, "x", "..%2f..%2fetc%2fpasswd"):
        assert httpx.get(f"{reader}/cards/{name}").status_code == 404
