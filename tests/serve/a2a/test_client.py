"""Going on from another agent's task: with the card, with the text, or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from a2a.types.a2a_pb2 import Artifact, Part, Role, Task, TaskState

from qkvshare import CacheCard, Raw, capture
from qkvshare.card import Signer
from qkvshare.card.errors import (
    AgentError,
    CardDigestError,
    CardExpiredError,
    CardFetchError,
    CardFormatError,
    CardSignatureError,
    CardThinError,
    IdentityError,
)
from qkvshare.hf.session.answers import Keep
from qkvshare.hf.session.session import Session
from qkvshare.serve.a2a import URI, Fetch, Taken, ask, take
from qkvshare.serve.a2a.extension import Announced, answer_parts
from qkvshare.store import Store

from .agents import HERE, SHORT, run, said, served, tiny_resident, user

READ, ASK = "The tide is high at noon.", "When?"


@pytest.fixture
def theirs(session: Session, tmp_path: Path) -> CacheCard:
    """What another agent's answer comes with."""
    other = Store(tmp_path / "theirs")
    prompt = session.prompt(other, [{"role": "user", "content": READ}])
    answer = session.answer(prompt, SHORT, store=other, keep=Keep("reader"))
    return other.get(str(answer.card))


def task_of(*parts: Part, state: TaskState = TaskState.TASK_STATE_COMPLETED) -> Task:
    task = Task(id="1", history=[user(READ)], artifacts=[Artifact(parts=parts)])
    task.status.state = state
    return task


def finished(card: CacheCard, data: bytes | None = None, **announced: Any) -> Task:
    """A task with the card in its answer, or other bytes, or another announcement."""
    text, part = answer_parts("yes", card, "http://a", 1 << 20)
    part.raw = part.raw if data is None else data
    if announced:
        said = {**Announced.of(card).metadata()[URI], **announced}
        part = Part(raw=part.raw, media_type=part.media_type, metadata={URI: said})
    return task_of(text, part)


def taking(task: Task, session: Session, store: Store, fetch: Fetch | None = None) -> Taken:
    return run(take(task, session, store, fetch=fetch or Fetch()))


def test_a_task_with_a_card_is_gone_on_from(
    session: Session, store: Store, theirs: CacheCard
) -> None:
    taken = taking(finished(theirs), session, store)
    assert (taken.card, taken.reason, taken.text) == (theirs.digest, "", "yes")
    prompt = taken.prompt(session, store, ASK)
    assert prompt.card is not None
    assert session.answer(prompt, SHORT).text == said(session, READ, said(session, READ), ASK)


def test_a_task_without_a_card_is_gone_on_from_by_its_text(session: Session, store: Store) -> None:
    taken = taking(task_of(Part(text="yes")), session, store)
    assert taken.card is None
    assert "no card" in taken.reason
    answer = session.answer(taken.prompt(session, store, ASK), SHORT)
    assert answer.text == said(session, READ, "yes", ASK)


def test_other_weights_and_other_codecs_mean_the_text(
    session: Session, store: Store, theirs: CacheCard
) -> None:
    other = taking(finished(theirs), tiny_resident(seed=1), store)
    assert other.card is None
    assert "weights" in other.reason
    newer = taking(finished(theirs, codecs=["raw/9"]), session, store)
    assert newer.card is None
    assert "raw/9" in newer.reason
    assert store.ls() == []


def test_other_origins_and_more_than_is_taken_mean_the_text(
    session: Session, store: Store, theirs: CacheCard
) -> None:
    elsewhere = task_of(*answer_parts("yes", theirs, "http://169.254.169.254", 0))
    taken = taking(elsewhere, session, store, Fetch(origins=("http://agent.test",)))
    assert taken.card is None
    assert "169.254.169.254" in taken.reason
    large = taking(finished(theirs), session, store, Fetch(limit=100))
    assert large.card is None
    assert "100" in large.reason


def test_a_damaged_card_is_an_error(session: Session, store: Store, theirs: CacheCard) -> None:
    data = bytearray(theirs.to_bytes())
    data[-1] ^= 1
    with pytest.raises(CardDigestError, match="damaged"):
        taking(finished(theirs, bytes(data)), session, store)
    with pytest.raises(CardFormatError, match="announced"):
        taking(finished(theirs, bytes(data[:-1])), session, store)
    with pytest.raises(CardFormatError, match="not a safetensors file"):
        taking(finished(theirs, b"\0" * len(data)), session, store)
    assert store.ls() == []


def test_another_card_than_announced_is_an_error(
    session: Session, store: Store, theirs: CacheCard
) -> None:
    with pytest.raises(CardDigestError, match="announced was 000000000000"):
        taking(finished(theirs, digest="0" * 64), session, store)
    other = capture(tiny_resident(seed=1).model, session.tokenizer, "hello", codec=Raw())
    as_ours = finished(other, identity=Announced.of(theirs).metadata()[URI]["identity"])
    with pytest.raises(IdentityError, match="weights"):
        taking(as_ours, session, store)
    assert store.ls() == []


def test_a_thin_or_expired_card_is_an_error(
    session: Session, store: Store, theirs: CacheCard
) -> None:
    thin = theirs.without(theirs)
    with pytest.raises(CardThinError, match="lacks"):
        taking(finished(thin, thin.to_bytes()), session, store)
    old = capture(session.model, session.tokenizer, "hello", codec=Raw(), ttl=1e-9)
    with pytest.raises(CardExpiredError):
        taking(finished(old), session, store)
    assert store.ls() == []


def test_a_card_gets_the_receivers_salt(session: Session, store: Store, theirs: CacheCard) -> None:
    apart = store.under("from others")
    taken = taking(finished(theirs), session, apart)
    assert taken.card != theirs.digest
    assert apart.get(str(taken.card)).manifest.salt == apart.salt
    answer = session.answer(taken.prompt(session, apart, ASK), SHORT)
    assert answer.text == said(session, READ, said(session, READ), ASK)


def test_only_cards_signed_by_somebody_trusted_are_taken_if_asked(
    session: Session, store: Store, theirs: CacheCard
) -> None:
    signer = Signer.generate()
    trusting = Fetch(trust=[signer.public])
    signed = theirs.signed(signer)
    assert taking(finished(signed), session, store, trusting).card == theirs.digest
    for card in (theirs, theirs.signed(Signer.generate())):
        with pytest.raises(CardSignatureError):
            taking(finished(card), session, store, trusting)
    with pytest.raises(CardSignatureError, match="salt"):
        taking(finished(signed), session, store.under("from others"), trusting)


@pytest.mark.parametrize(
    ("state", "name"),
    [
        (TaskState.TASK_STATE_FAILED, "failed"),
        (TaskState.TASK_STATE_CANCELED, "canceled"),
        (TaskState.TASK_STATE_WORKING, "working"),
        (TaskState.TASK_STATE_INPUT_REQUIRED, "input_required"),
    ],
)
def test_a_task_that_is_not_completed_is_an_error(
    session: Session, store: Store, state: TaskState, name: str
) -> None:
    task = task_of(Part(text="half of it"), state=state)
    task.status.message.role = Role.ROLE_AGENT
    task.status.message.parts.append(Part(text="out of paper"))
    with pytest.raises(AgentError, match=f"{name}: out of paper"):
        taking(task, session, store)


def test_who_cannot_use_a_card_is_not_sent_one(
    session: Session, store: Store, tmp_path: Path, theirs: CacheCard
) -> None:
    """The other agent has other weights, so it gets the text alone."""
    other, their_store = tiny_resident(seed=1), Store(tmp_path / "other")

    async def work() -> Taken:
        async with served(other, their_store) as client:
            given = finished(theirs).artifacts[0].parts
            return await ask(HERE, ASK, session=session, store=store, given=given, client=client)

    taken = run(work())
    assert "weights" in taken.reason
    assert [part.text for part in taken.task.history[0].parts] == ["yes", ASK]
    assert taken.text == said(other, f"yes\n{ASK}")
    assert their_store.ls() == []


def test_a_card_that_is_gone_is_an_error(session: Session, store: Store, tmp_path: Path) -> None:
    their_store = Store(tmp_path / "other")

    async def work() -> None:
        async with served(session, their_store, inline=0) as client:
            taken = await ask(HERE, READ, session=session, store=store, client=client)
            their_store.remove(str(taken.card))
            fetch = Fetch(origins=(HERE,))
            await take(taken.task, session, store, fetch=fetch, client=client)

    with pytest.raises(CardFetchError, match="404"):
        run(work())


def test_an_agent_that_cannot_be_reached_is_an_error(session: Session, store: Store) -> None:
    with pytest.raises(AgentError, match="cannot be asked"):
        run(ask("http://127.0.0.1:9", READ, session=session, store=store))
