"""What an agent answers to whom, and what it keeps."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest
from a2a.client import ClientConfig, create_client
from a2a.types.a2a_pb2 import (
    CancelTaskRequest,
    GetTaskRequest,
    Part,
    SendMessageRequest,
    Task,
    TaskState,
)
from google.protobuf.json_format import MessageToDict, ParseDict
from google.protobuf.struct_pb2 import Value

from qkvshare.card.errors import AgentError, CardFormatError
from qkvshare.hf.session.answers import Answer, Keep
from qkvshare.hf.session.session import Session
from qkvshare.serve.a2a import MEDIA_TYPE, URI, Fetch, Taken, ask
from qkvshare.serve.limits import Limits
from qkvshare.store import Store

from .agents import HERE, calling, run, said, sdk, served, tiny_resident, user

READ, ASK, MORE = "The tide is high at noon.", "When?", "And then?"


@pytest.fixture
def theirs(tmp_path: Path) -> Store:
    """The agent's store."""
    return Store(tmp_path / "theirs")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """The client's store."""
    return Store(tmp_path / "mine")


def test_a_plain_client_gets_text_and_nothing_is_kept(session: Session, theirs: Store) -> None:
    async def work() -> object:
        async with served(session, theirs) as client:
            return await sdk(user(READ), client)

    task = run(work())
    assert task.status.state == TaskState.TASK_STATE_COMPLETED
    (artifact,) = task.artifacts
    assert [part.text for part in artifact.parts] == [said(session, READ)]
    assert URI not in artifact.metadata
    assert theirs.ls() == []


def test_a_client_with_the_extension_gets_a_small_card_at_once(
    session: Session, theirs: Store
) -> None:
    async def work() -> object:
        async with served(session, theirs, keep=Keep(agent="reader", ttl=600)) as client:
            return await sdk(user(READ), client, HERE, URI)

    (artifact,) = run(work()).artifacts
    assert artifact.extensions == [URI]
    text, card = artifact.parts
    assert text.text == said(session, READ)
    assert card.raw == theirs.get(theirs.latest("reader")).to_bytes()
    assert theirs.get(theirs.latest("reader")).manifest.expires is not None


def test_other_cards_of_its_store_are_not_served(session: Session, theirs: Store) -> None:
    async def work() -> None:
        kept = session.read("A secret.", theirs, Keep())
        async with served(session, theirs) as client:
            first = await sdk(user(READ), client, HERE, URI)
            (other,) = {entry.digest for entry in theirs.ls()} - {kept.card}
            assert (await client.get(f"{HERE}/cards/{kept.card}")).status_code == 404
            answer = await client.get(f"{HERE}/cards/{other}")
            assert answer.content == first.artifacts[0].parts[1].raw

    run(work())


@pytest.mark.parametrize("uris", [(), (URI,)], ids=["text", "cards"])
def test_a_context_is_a_conversation(
    session: Session, theirs: Store, uris: tuple[str, ...]
) -> None:
    async def work() -> None:
        async with served(session, theirs) as client:
            turns = [READ]
            for text in (ASK, MORE, None):
                task = await sdk(user(turns[-1], context_id="talk"), client, HERE, *uris)
                answer = task.artifacts[0].parts[0].text
                assert answer == said(session, *turns)
                turns += [answer, *([text] if text else [])]
                metadata = MessageToDict(task.artifacts[0].metadata)
                cached = metadata.get(URI, {}).get("cached_tokens", "0")
                assert (int(cached) > 0) == (bool(uris) and len(turns) > 3)
            other = await sdk(user(ASK, context_id="other"), client)
            assert other.artifacts[0].parts[0].text == said(session, ASK)

    run(work())


def test_a_conversation_whose_card_is_gone_goes_on_from_its_text(
    session: Session, theirs: Store
) -> None:
    async def work() -> None:
        async with served(session, theirs) as client:
            first = await sdk(user(READ, context_id="talk"), client, HERE, URI)
            for entry in theirs.ls():
                theirs.remove(entry.digest)
            second = await sdk(user(ASK, context_id="talk"), client, HERE, URI)
            said_first = first.artifacts[0].parts[0].text
            assert second.artifacts[0].parts[0].text == said(session, READ, said_first, ASK)

    run(work())


def test_its_own_card_is_gone_on_from_without_fetching_it(
    session: Session, theirs: Store, store: Store
) -> None:
    """Nothing may be fetched, and it still knows the card that it handed on."""

    async def work() -> tuple[Taken, Taken]:
        async with served(session, theirs, inline=0) as client:
            first = await ask(HERE, READ, session=session, store=store, client=client)
            given = first.task.artifacts[0].parts
            return first, await ask(
                HERE, ASK, session=session, store=store, given=given, client=client
            )

    first, second = run(work())
    assert second.text == said(session, READ, first.text, ASK)
    assert int(second.task.artifacts[0].metadata[URI]["cached_tokens"]) > 0


def test_a_card_that_the_agent_cannot_use_is_answered_from_the_text_with_the_reason(
    session: Session, theirs: Store, store: Store, tmp_path: Path
) -> None:
    """A plain client, which does not negotiate, sends it on all the same."""
    other = tiny_resident(seed=1)

    async def work() -> object:
        async with served(session, store) as client:
            first = await sdk(user(READ), client, HERE, URI)
        async with served(other, theirs) as client:
            return await sdk(user(*first.artifacts[0].parts, ASK), client)

    (artifact,) = run(work()).artifacts
    assert "weights" in artifact.metadata[URI]["reason"]
    assert artifact.parts[0].text == said(other, f"{said(session, READ)}\n{ASK}")
    assert theirs.ls() == []


def test_a_damaged_card_fails_the_task_with_the_reason(
    session: Session, theirs: Store, store: Store, tmp_path: Path
) -> None:
    async def work() -> None:
        async with served(session, theirs) as client:
            first = await ask(HERE, READ, session=session, store=store, client=client)
            given = list(first.task.artifacts[0].parts)
        given[1].raw = given[1].raw[:-1] + bytes([given[1].raw[-1] ^ 1])
        async with served(session, Store(tmp_path / "third")) as client:
            await ask(HERE, ASK, session=session, store=store, given=given, client=client)

    with pytest.raises(AgentError, match="failed: .* damaged"):
        run(work())


def asked(session: Session, store: Store, *parts: Part, **options: Any) -> Task:
    async def work() -> Task:
        async with served(session, store, **options) as client:
            return await sdk(user(*parts), client)

    return run(work())


@pytest.mark.parametrize(
    ("part", "text"),
    [
        (Part(data=ParseDict({"when": "six", "at": 2}, Value())), '{"at": 2, "when": "six"}'),
        (Part(raw=b"At six.", media_type="text/plain", filename="a.txt"), "At six."),
        (Part(raw="\ufeffAt six.".encode(), media_type="Text/Markdown; charset=utf-8"), "At six."),
        (Part(raw=b'{"at": 6}', media_type="application/json"), '{"at": 6}'),
    ],
    ids=["data", "text file", "markdown", "JSON file"],
)
def test_all_of_a_message_is_read(session: Session, theirs: Store, part: Part, text: str) -> None:
    """And not its text parts alone."""
    task = asked(session, theirs, Part(text=READ), part)
    assert task.artifacts[0].parts[0].text == said(session, f"{READ}\n{text}")


@pytest.mark.parametrize(
    ("part", "words"),
    [
        (Part(raw=b"x", media_type="image/png"), "image/png"),
        (Part(raw=b"x"), "cannot be read"),
        (Part(raw=b"\xff", media_type="text/plain"), "not UTF-8"),
        (Part(url="http://elsewhere.test/a.txt", media_type="text/plain"), "not as a URL"),
        (Part(), "cannot be read"),
    ],
    ids=["image", "bytes", "latin", "url", "empty"],
)
def test_a_message_with_a_part_that_is_not_read_fails(
    session: Session, theirs: Store, part: Part, words: str
) -> None:
    task = asked(session, theirs, Part(text=READ), part)
    assert task.status.state == TaskState.TASK_STATE_FAILED
    assert words in task.status.message.parts[0].text


def test_an_answer_has_an_end(session: Session, theirs: Store) -> None:
    """Others wait for the model."""
    task = asked(session, theirs, Part(text=READ), limits=Limits(seconds=0.001))
    assert task.status.state == TaskState.TASK_STATE_FAILED
    assert "longer than 0.001 seconds" in task.status.message.parts[0].text


def test_a_message_without_text_fails(session: Session, theirs: Store) -> None:
    task = asked(session, theirs, Part(text=" "), Part(text=""))
    assert task.status.state == TaskState.TASK_STATE_FAILED
    assert "no text" in task.status.message.parts[0].text


def test_a_message_that_only_repeats_a_card_fails(session: Session, theirs: Store) -> None:
    async def work() -> object:
        async with served(session, theirs) as client:
            first = await sdk(user(READ), client, HERE, URI)
            return await sdk(user(*first.artifacts[0].parts), client)

    assert "besides" in run(work()).status.message.parts[0].text


def test_a_card_of_its_own_that_is_gone_is_taken_from_the_message(
    session: Session, theirs: Store
) -> None:
    async def work() -> None:
        async with served(session, theirs) as client:
            first = await sdk(user(READ), client, HERE, URI)
            (entry,) = theirs.ls()
            theirs.remove(entry.digest)
            second = await sdk(user(*first.artifacts[0].parts, ASK), client)
            said_first = first.artifacts[0].parts[0].text
            assert second.artifacts[0].parts[0].text == said(session, READ, said_first, ASK)
        assert [each.digest for each in theirs.ls()] == [entry.digest]

    run(work())


def test_what_the_model_cannot_read_fails_the_task_with_the_reason(
    session: Session, theirs: Store, store: Store
) -> None:
    async def work() -> object:
        async with served(session, theirs) as client:
            return await sdk(user("x" * 300), client)

    task = run(work())
    assert task.status.state == TaskState.TASK_STATE_FAILED
    assert "256" in task.status.message.parts[0].text


def test_a_task_that_is_called_off_ends_and_keeps_nothing(
    session: Session, theirs: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Meanwhile the agent tells how the task is: the model never blocks it."""
    answer, begun, finishes = Session.answer, [], []

    def until_called_off(self: Session, *args: object, **options: object) -> Answer:
        cancelled = options["cancelled"]
        begun.append(True)
        while not cancelled():  # type: ignore[operator]
            time.sleep(0.001)
        finishes.append(answer(self, *args, **options))  # type: ignore[arg-type]
        return finishes[-1]

    monkeypatch.setattr(Session, "answer", until_called_off)

    async def work() -> TaskState:
        async with served(session, theirs) as client:
            config = ClientConfig(streaming=False, polling=True, httpx_client=client)
            asked = await create_client(HERE, client_config=config)
            request = SendMessageRequest(message=user(READ))
            (reply,) = [e async for e in asked.send_message(request, context=calling())]
            one = GetTaskRequest(id=reply.task.id)
            while not begun:  # it may still be reading the message
                await asyncio.sleep(0.01)
            task = await asked.get_task(one, context=calling())
            # The store of tasks hears that the work has begun after the model does.
            while task.status.state == TaskState.TASK_STATE_SUBMITTED:
                task = await asked.get_task(one, context=calling())
            assert task.status.state == TaskState.TASK_STATE_WORKING
            called = CancelTaskRequest(id=reply.task.id)
            await asked.cancel_task(called, context=calling())
            while not finishes:
                await asyncio.sleep(0.01)
            task = await asked.get_task(one, context=calling())
            assert not task.artifacts
            return task.status.state

    assert run(work()) == TaskState.TASK_STATE_CANCELED
    assert (finishes[0].finish, finishes[0].card) == ("cancelled", None)
    assert theirs.ls() == []


def test_requests_at_once_are_answered_one_by_one(session: Session, theirs: Store) -> None:
    async def work() -> list[str]:
        async with served(session, theirs) as client:
            tasks = await asyncio.gather(*(sdk(user(f"{READ} {n}"), client) for n in range(8)))
            return [task.artifacts[0].parts[0].text for task in tasks]

    assert run(work()) == [said(session, f"{READ} {n}") for n in range(8)]


def test_a_message_with_two_cards_fails(session: Session, theirs: Store, store: Store) -> None:
    async def work() -> None:
        async with served(session, theirs, fetch=Fetch()) as client:
            card = Part(raw=b"x", media_type=MEDIA_TYPE)
            task = await sdk(user(card, card, READ), client)
            assert "2 cards" in task.status.message.parts[0].text
            given = [card, card]
            await ask(HERE, READ, session=session, store=store, given=given, client=client)

    with pytest.raises(CardFormatError, match="2 cards"):
        run(work())
