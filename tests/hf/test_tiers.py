"""An agent resumed from disk, from codes or from a decoded cache says the same."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from qkvshare import Raw, capture
from qkvshare.card.errors import CardNotFoundError
from qkvshare.hf.session.tiers import Tiers
from qkvshare.store import Store
from tests.conftest import greedy, greedy_from_text, some_ids, tiny_model

ROOM = 1 << 24


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_every_tier_says_what_reading_the_text_would(tmp_path: Path, family: str) -> None:
    model, ids, new = tiny_model(family), some_ids(40), some_ids(5, seed=1)
    store = Store(tmp_path)
    digest = store.put(capture(model, token_ids=ids, codec=Raw()))
    tiers = Tiers(model, store, hot_bytes=ROOM, warm_bytes=ROOM)
    expected = greedy_from_text(model, ids + new)
    for tier in ("cold", "warm", "hot", "hot"):
        assert tiers.tier(digest) == tier
        assert greedy(model, **tiers.resume(digest, new)) == expected


def test_a_hot_card_can_be_resumed_without_new_tokens(tmp_path: Path, llama: Any) -> None:
    ids = some_ids(20)
    store = Store(tmp_path)
    digest = store.put(capture(llama, token_ids=ids, codec=Raw()))
    tiers = Tiers(llama, store, hot_bytes=ROOM, warm_bytes=ROOM)
    expected = greedy_from_text(llama, ids)
    assert [greedy(llama, **tiers.resume(digest)) for _ in range(4)] == [expected] * 4


def test_room_bounds_what_is_kept(tmp_path: Path, llama: Any) -> None:
    store = Store(tmp_path)
    cards = [capture(llama, token_ids=some_ids(30, seed=n), codec=Raw()) for n in range(3)]
    digests = [store.put(card) for card in cards]
    tiers = Tiers(llama, store, hot_bytes=0, warm_bytes=int(2.5 * cards[0].nbytes))
    for digest in digests:
        tiers.resume(digest, [5])
        tiers.resume(digest, [5])
    assert [tiers.tier(digest) for digest in digests] == ["cold", "warm", "warm"]


def test_what_is_forgotten_is_asked_of_the_store(tmp_path: Path, llama: Any) -> None:
    store = Store(tmp_path)
    digest = store.put(capture(llama, token_ids=some_ids(30)))
    tiers = Tiers(llama, store, hot_bytes=ROOM, warm_bytes=ROOM)
    tiers.resume(digest, [5])
    store.remove(digest)
    tiers.forget(digest)
    with pytest.raises(CardNotFoundError):
        tiers.resume(digest, [5])


def test_an_agent_goes_on_after_its_process_was_killed(
    tmp_path: Path, llama: Any, llama_folder: Path
) -> None:
    ids, new = some_ids(40), some_ids(5, seed=1)
    code = (
        "import os, signal, sys; from pathlib import Path;"
        "from transformers import AutoModelForCausalLM as A;"
        "from qkvshare import Raw, capture; from qkvshare.store import Store;"
        "from tests.conftest import some_ids;"
        "card = capture(A.from_pretrained(sys.argv[1]), token_ids=some_ids(40), codec=Raw(),"
        " agent='reader'); Store(Path(sys.argv[2])).put(card); os.kill(os.getpid(), signal.SIGKILL)"
    )
    command = [sys.executable, "-c", code, llama_folder, tmp_path / "store"]
    killed = subprocess.run(command, capture_output=True, text=True)
    assert killed.returncode == -9, killed.stderr
    store = Store(tmp_path / "store")
    tiers = Tiers(llama, store, hot_bytes=ROOM, warm_bytes=ROOM)
    arguments = tiers.resume(store.latest("reader"), new)
    assert greedy(llama, **arguments) == greedy_from_text(llama, ids + new)
