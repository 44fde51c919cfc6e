"""An agent resumed from disk, from codes or from a decoded cache says the same."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qkvshare import Raw, capture
from qkvshare.card.errors import CardNotFoundError
from qkvshare.hf.session.answers import Keep, Prompt, Sampling
from qkvshare.hf.session.session import Session
from qkvshare.hf.session.tiers import Name
from qkvshare.store import Store
from tests.conftest import greedy_from_text, some_ids, tiny_model, tiny_tokenizer

SHORT = Sampling(max_tokens=16)
NEW = some_ids(5, seed=1)


def resume(session: Session, store: Store, digest: str, new: list[int]) -> str:
    """What the model says after a card and ``new``."""
    card = store.get(digest)
    ids = np.concatenate([card.token_ids, np.array(new, np.int32)])
    answer = session.answer(Prompt(ids, card, digest, named=True), SHORT)
    assert answer.cached_tokens == min(card.tokens, len(ids) - 1)
    return answer.text


def from_text(session: Session, ids: list[int]) -> str:
    """The same, without a card."""
    return str(session.tokenizer.decode(greedy_from_text(session.model, ids)))


def name(store: Store, digest: str) -> Name:
    """What tiers call a whole card."""
    return Name(digest, store.get(digest).tokens)


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_every_tier_says_what_reading_the_text_would(tmp_path: Path, family: str) -> None:
    model, ids = tiny_model(family), some_ids(40)
    store, session = Store(tmp_path), Session(model, tiny_tokenizer())
    digest = store.put(capture(model, session.tokenizer, ids, codec=Raw()))
    expected = from_text(session, ids + NEW)
    for tier in ("cold", "warm", "hot", "hot"):
        assert session.tiers.tier(name(store, digest)) == tier
        assert resume(session, store, digest, NEW) == expected


def test_a_card_that_was_resumed_is_read_from_memory(tmp_path: Path, llama: Any) -> None:
    store, session, ids = Store(tmp_path), Session(llama, tiny_tokenizer()), some_ids(40)
    digest = store.put(capture(llama, session.tokenizer, ids, codec=Raw()))
    expected = from_text(session, ids + NEW)
    assert resume(session, store, digest, NEW) == expected
    (segment,) = tmp_path.rglob("*.segment")
    data = segment.read_bytes()
    segment.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert [resume(session, store, digest, NEW) for _ in range(2)] == [expected] * 2
    with pytest.raises(Exception, match="digest"):
        resume(Session(llama, tiny_tokenizer()), store, digest, NEW)


def test_a_kept_answer_is_warm_at_once(tmp_path: Path, llama: Any) -> None:
    store, session = Store(tmp_path), Session(llama, tiny_tokenizer())
    card = str(session.read("The tide is high at noon.", store, Keep()).card)
    assert session.tiers.tier(name(store, card)) == "warm"


def test_a_hot_card_can_be_resumed_without_new_tokens(tmp_path: Path, llama: Any) -> None:
    store, session, ids = Store(tmp_path), Session(llama, tiny_tokenizer()), some_ids(20)
    digest = store.put(capture(llama, session.tokenizer, ids, codec=Raw()))
    expected = from_text(session, ids)
    assert [resume(session, store, digest, []) for _ in range(3)] == [expected] * 3
    assert session.tiers.tier(name(store, digest)) == "warm"
    resume(session, store, digest, [5])
    assert session.tiers.tier(name(store, digest)) == "hot"
    assert resume(session, store, digest, []) == expected


def test_bytes_bound_what_is_kept(tmp_path: Path, llama: Any) -> None:
    store = Store(tmp_path)
    tokenizer, context = tiny_tokenizer(), [some_ids(30, seed=seed) for seed in range(3)]
    cards = [capture(llama, tokenizer, ids, codec=Raw()) for ids in context]
    digests = [store.put(card) for card in cards]
    warm = int(2.5 * cards[0].nbytes)
    session = Session(llama, tokenizer, hot_bytes=0, warm_bytes=warm)
    for digest in digests:
        resume(session, store, digest, [5])
        resume(session, store, digest, [5])
    tiers = [session.tiers.tier(name(store, digest)) for digest in digests]
    assert tiers == ["cold", "warm", "warm"]


def test_a_card_that_was_removed_is_not_resumed_from_memory(tmp_path: Path, llama: Any) -> None:
    store, session = Store(tmp_path), Session(llama, tiny_tokenizer())
    digest = store.put(capture(llama, session.tokenizer, some_ids(30)))
    resume(session, store, digest, [5])
    store.remove(digest)
    with pytest.raises(CardNotFoundError):
        session.prompt(store, [{"role": "user", "content": "When?"}], digest)


def test_a_card_of_a_waiting_agent_stays_where_an_idle_one_goes(tmp_path: Path, llama: Any) -> None:
    session = Session(llama, tiny_tokenizer(), codec=Raw())
    size = store_bytes(session, tmp_path / "size")
    store = Store(tmp_path / "store", limit=int(3.5 * size))
    waiting = session.read("The first agent.", store, Keep("a", waits_on="search")).card
    idle = session.read("Another agent..", store, Keep("b")).card
    for number in range(4):
        session.read(f"Somebody else: {number}", store, Keep("c"))
    left = {entry.digest for entry in store.ls()}
    assert waiting in left
    assert idle not in left
    assert store.index.row("SELECT tool FROM waiting")["tool"] == "search"
    session.prompt(store, [{"role": "user", "content": "It is back."}], waiting)
    assert store.index.row("SELECT tool FROM waited")["tool"] == "search"


def store_bytes(session: Session, folder: Path) -> int:
    """What a store has with one card in it."""
    store = Store(folder)
    session.read("Somebody else: 0", store, Keep())
    return store.stats()["bytes"]


@pytest.mark.slow
def test_an_agent_goes_on_after_its_process_was_killed(
    tmp_path: Path, llama: Any, llama_folder: Path
) -> None:
    code = (
        "import os, signal, sys; from pathlib import Path;"
        "from transformers import AutoModelForCausalLM as A;"
        "from qkvshare import Raw, capture; from qkvshare.store import Store;"
        "from tests.conftest import some_ids, tiny_tokenizer;"
        "card = capture(A.from_pretrained(sys.argv[1]), tiny_tokenizer(), some_ids(40),"
        " codec=Raw(), agent='reader'); Store(Path(sys.argv[2])).put(card);"
        " os.kill(os.getpid(), signal.SIGKILL)"
    )
    command = [sys.executable, "-c", code, llama_folder, tmp_path / "store"]
    killed = subprocess.run(command, capture_output=True, text=True)
    assert killed.returncode == -9, killed.stderr
    store, session = Store(tmp_path / "store"), Session(llama, tiny_tokenizer())
    said = resume(session, store, store.latest("reader"), NEW)
    assert said == from_text(session, some_ids(40) + NEW)
