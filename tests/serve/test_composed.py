"""Two roles with other system prompts, who read the same notes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from qkvshare import Raw
from qkvshare.card.errors import UnsupportedModelError
from qkvshare.hf.compose import compose as composing
from qkvshare.hf.compose.repairs import All
from qkvshare.hf.session.answers import Keep, Sampling
from qkvshare.hf.session.session import Session
from qkvshare.serve.service import Service
from qkvshare.store import Store

from ..conftest import greedy_from_text, tiny_tokenizer
from ..models import tiny
from .server import NAME, make_service, serving_service, talker

NOTES = (
    "The tide is high at noon, and low at six. " * 6 + "Boats leave at four, with 12 crates. " * 4
)
COMPOSE = {"kv_transfer_params": {"reuse": "compose"}}
KEEP = {"kv_transfer_params": {"keep": True}}


def role(name: str) -> list[dict[str, str]]:
    return [{"role": "system", "content": name}, {"role": "user", "content": NOTES}]


@pytest.fixture(scope="module")
def session() -> Session:
    return talker()


@pytest.fixture
def service(tmp_path: Path, session: Session) -> Service:
    return make_service(tmp_path, session)


@pytest.fixture
def address(service: Service) -> Iterator[str]:
    with serving_service(service) as address:
        yield address


def say(address: str, messages: Any, more: dict[str, Any], **kw: Any) -> Any:
    asked = openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)
    return asked.chat.completions.create(
        model=NAME, messages=messages, max_tokens=12, temperature=0, extra_body=more, **kw
    )


def details(answer: Any) -> dict[str, int]:
    return {k: v for k, v in answer.usage.prompt_tokens_details.model_dump().items() if v}


def test_the_second_role_is_served_from_the_notes_of_the_first(
    address: str, session: Session, service: Service
) -> None:
    say(address, role("You are a careful researcher."), KEEP)
    (read,) = service.stores.of(None).ls()
    exact = say(address, role("Role: auditor."), {})
    assert details(exact) == {}  # no prefix is the same
    found = details(say(address, role("Role: auditor."), COMPOSE))
    assert found["composed_tokens"] == found["cached_tokens"] > 0.8 * len(NOTES)
    assert found["repaired_tokens"] == 4
    prompt = len(session.chat.whole(role("Role: auditor.")))
    assert found["cached_tokens"] + found["repaired_tokens"] < prompt
    (shown,) = service._resumes[None]
    assert shown["composed"]
    text, notes = shown["parts"]
    assert text["card"] is None
    assert (notes["card"], text["tokens"] + notes["tokens"]) == (read.digest, prompt)


def test_with_all_repaired_it_says_what_the_text_says(
    address: str, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    say(address, role("You are a careful researcher."), KEEP)
    monkeypatch.setattr(composing, "First", All)
    answer = say(address, role("Role: auditor."), COMPOSE)
    assert details(answer)["repaired_tokens"] > 0.8 * len(NOTES)
    ids = session.chat.whole(role("Role: auditor.")).tolist()
    said = session.tokenizer.decode(greedy_from_text(session.model, ids, 12))
    assert answer.choices[0].message.content == said


def test_streamed(address: str) -> None:
    say(address, role("You are a careful researcher."), KEEP)
    usage = {"stream": True, "stream_options": {"include_usage": True}}
    *_, last = say(address, role("Role: auditor."), COMPOSE, **usage)
    assert details(last)["composed_tokens"] > 0


def test_what_is_kept_of_it_is_read_again(address: str, service: Service) -> None:
    """A card says what the model makes of its text; so its holder answers as from text."""
    say(address, role("You are a careful researcher."), KEEP)
    both = {"kv_transfer_params": {"reuse": "compose", "keep": True}}
    answer = say(address, role("Role: auditor."), both)
    assert details(answer)["composed_tokens"] > 0
    card = service.stores.of(None).get(answer.kv_transfer_params["card"])
    assert [hop.tokens_added for hop in card.manifest.lineage] == [card.tokens]
    more = [{"role": "user", "content": "When?"}]
    second = say(address, more, {"kv_transfer_params": {"card": card.digest}})
    ids = card.token_ids.tolist() + service.session.chat.following(more).tolist()
    said = service.session.tokenizer.decode(greedy_from_text(service.session.model, ids, 12))
    assert second.choices[0].message.content == said


def test_a_prefix_is_still_exact(address: str, session: Session) -> None:
    """Also one that ends where no segment does."""
    same = role("You are a careful researcher.")
    first = say(address, same, KEEP)
    answer = say(address, same, COMPOSE)
    assert details(answer) == {"cached_tokens": first.usage.prompt_tokens - 1}
    text = first.choices[0].message.content
    more = [*same, {"role": "assistant", "content": text}, {"role": "user", "content": "When?"}]
    assert details(say(address, more, COMPOSE)) == details(say(address, more, {})) != {}


def test_nothing_of_it_is_known(address: str) -> None:
    assert details(say(address, role("Role: auditor."), COMPOSE)) == {}


def test_salts_keep_notes_apart(address: str) -> None:
    say(address, role("You are a careful researcher."), {**KEEP, "cache_salt": "red"})
    assert details(say(address, role("Role: auditor."), {**COMPOSE, "cache_salt": "red"}))
    assert not details(say(address, role("Role: auditor."), {**COMPOSE, "cache_salt": "blue"}))
    assert not details(say(address, role("Role: auditor."), COMPOSE))


def test_a_damaged_card_is_not_composed(address: str, service: Service) -> None:
    """The text is read, and the server says so."""
    card = say(address, role("You are a careful researcher."), KEEP).kv_transfer_params["card"]
    store = service.stores.of(None)
    for name in store.get(card).manifest.names:
        path = store.folder.segment_path(name)
        data = bytearray(path.read_bytes())
        data[-5] ^= 1
        path.write_bytes(bytes(data))
    with pytest.warns(UserWarning, match="the text is read again"):
        answer = say(address, role("Role: auditor."), COMPOSE)
    assert details(answer) == {}
    assert not details(say(address, role("Role: auditor."), COMPOSE))  # it is set aside


def test_a_session_composes_by_itself_where_it_is_told_to(tmp_path: Path) -> None:
    session, store = talker(), Store(tmp_path / "store")
    session.read(role("You are a careful researcher."), store, Keep())
    assert session.prompt(store, role("Role: auditor.")).parts is None
    session.reuse = "compose"
    prompt = session.prompt(store, role("Role: auditor."))
    answer = session.answer(prompt, Sampling(max_tokens=4), store=store)
    assert answer.composed_tokens > 0.8 * len(NOTES)
    assert session.prompt(store, role("Role: auditor."), reuse="exact").parts is None


def test_a_model_that_cannot_compose_refuses(tmp_path: Path) -> None:
    session = Session(tiny.tiny_model("bloom"), tiny_tokenizer(), codec=Raw())
    with pytest.raises(UnsupportedModelError, match="cannot be composed"):
        session.prompt(Store(tmp_path / "store"), role("Role: auditor."), reuse="compose")
