"""A session, a server and its page with a model that keeps recurrent states."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from qkvshare import Raw, Store, capture
from qkvshare.card import Key
from qkvshare.card.errors import BudgetError
from qkvshare.hf.cache.observe import observe
from qkvshare.hf.session.answers import Keep, Sampling
from qkvshare.hf.session.session import Session
from qkvshare.serve.app import create_app
from qkvshare.serve.viewing import card_view, overview

from ..conftest import tiny_tokenizer
from ..models.tiny import tiny_model
from .server import CARD, NAME, Local, make_service

FIRST = [{"role": "user", "content": "the tide is low at noon"}]
THEN = [{"role": "user", "content": "and at six?"}]


# States beside attention, states alone, and these read one token at a time.
NAMES = ["qwen3_5_text", "mamba2", pytest.param("mamba", marks=pytest.mark.slow)]


@pytest.fixture(scope="module", params=NAMES)
def session(request: pytest.FixtureRequest) -> Session:
    model = tiny_model(request.param)
    model.config.max_position_embeddings = 512
    model.generation_config.suppress_tokens = [*range(4), *range(99, 128)]
    return Session(model, tiny_tokenizer(), codec=Raw())


@pytest.fixture
def client(tmp_path: Path, session: Session) -> Iterator[Local]:
    with Local(create_app(make_service(tmp_path / "cards", session))) as client:
        yield client


def _answer(client: Local, messages: list[dict[str, str]], **transfer: Any) -> Any:
    body = {"model": NAME, "messages": messages, "max_tokens": 8, "temperature": 0}
    found = client.post("/v1/chat/completions", json={**body, "kv_transfer_params": transfer})
    assert found.status_code == 200, found.text
    return found.json()


def _said(session: Session, ids: Any) -> str:
    silent = session.model.generation_config.suppress_tokens
    rows = torch.tensor([np.asarray(ids).tolist()])
    with torch.no_grad():
        out = session.model.generate(
            input_ids=rows,
            attention_mask=torch.ones_like(rows),
            max_new_tokens=8,
            min_new_tokens=8,
            do_sample=False,
            suppress_tokens=silent,
        )
    text: str = session.tokenizer.decode(out[0, rows.shape[1] :])
    return text


def test_a_conversation_goes_on_from_cards(session: Session, tmp_path: Path) -> None:
    store = Store(tmp_path)
    messages: list[Any] = list(FIRST)
    for turn in range(3):
        prompt = session.prompt(store, messages)
        assert (prompt.card is None) == (turn == 0)
        answer = session.answer(prompt, Sampling(max_tokens=8), store=store, keep=Keep())
        assert answer.text == _said(session, prompt.ids)
        assert (answer.cached_tokens > 0) == (turn > 0)
        messages += [{"role": "assistant", "content": answer.text}, *THEN]
    assert len(store.ls()) == 3


def test_a_server_answers_from_a_kept_card(client: Local, session: Session) -> None:
    kept = _answer(client, FIRST, keep=True)
    card = kept["kv_transfer_params"]["card"]
    said = kept["choices"][0]["message"]["content"]
    whole = [*FIRST, {"role": "assistant", "content": said}, *THEN]
    named = _answer(client, THEN, card=card)
    assert named["choices"][0]["message"]["content"] == _said(session, session.chat.whole(whole))
    assert named["usage"]["prompt_tokens_details"]["cached_tokens"] > 0
    data = client.get(f"/v1/cards/{card}").content
    assert client.post("/v1/cards", content=data, headers=CARD).status_code in (200, 201)
    forged = bytearray(data)
    forged[-40:] = b"\xff" * 40
    assert client.post("/v1/cards", content=bytes(forged), headers=CARD).status_code == 422


def test_the_page_shows_what_states_take(session: Session, tmp_path: Path) -> None:
    card = capture(session.model, session.tokenizer, "the tide is low at noon")
    sealed = card.save(tmp_path / "card", key=Key(b"Z" * 32))
    view = card_view(type(card).load(sealed, key=Key(b"Z" * 32)), session.tokenizer)
    assert view["bytes"]["states"] == card.state_bytes > 0
    assert {state["kind"] for state in view["states"]} == {"conv", "recurrent"}
    assert (view["bits"] is None) == (view["bits_per_value"] is None) == (not view["layers"])


def test_the_page_lists_cards_of_states_alone(session: Session, tmp_path: Path) -> None:
    store = Store(tmp_path)
    session.read("the tide is low at noon", store, Keep(agent="A"))
    (card,) = overview(store)["cards"]
    alone = not observe(session.model).layers
    assert (card["bits_per_value"] is None) == alone
    assert store.audit().ok
    if alone:
        with pytest.raises(BudgetError, match=r"keeps none"):
            session.read("the tide is low at noon", store, Keep(bits=4.0))
