"""What the page is told of a store and of its cards."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import qkvshare
from benchmarks.codecs import Kivi, Uniform
from qkvshare.card import Key, Signer
from qkvshare.codecs import Codec, Packed, Raw, Transform
from qkvshare.codecs.stats import token_bits
from qkvshare.hf.calibrate.calibrate import calibrate
from qkvshare.serve.viewing import MOST_HOPS, card_view, overview, token_texts
from qkvshare.store import Store

from ..cards import make_card
from ..conftest import some_ids

TEXT = "The ink is made from walnut shells.\nIt must never be mixed."


@pytest.fixture(scope="module")
def transform(llama: Any) -> Transform:
    return Transform.of(calibrate(llama, [some_ids(120, seed=3), some_ids(100, seed=4)], 20))


@pytest.fixture(params=[Raw(), Uniform(4), Kivi(4), Packed(), "transform"], ids=str)
def codec(request: pytest.FixtureRequest, transform: Transform) -> Codec:
    return transform if request.param == "transform" else request.param


@pytest.mark.parametrize("key", [None, Key(b"k" * 32)], ids=["plain", "sealed"])
def test_a_card_as_json(
    llama: Any, tokenizer: Any, codec: Codec, key: Key | None, tmp_path: Path
) -> None:
    store = Store(tmp_path, tenant="alice", key=key)
    made = qkvshare.capture(
        llama, tokenizer, TEXT, codec=codec, bits=60.0, agent="reader", salt=store.salt
    )
    card = store.get(store.put(made))
    view = msgspec.json.decode(msgspec.json.encode(card_view(card, tokenizer)))

    assert "".join(view["texts"]) == tokenizer.decode(card.token_ids)
    assert view["digest"] == card.digest
    assert view["salted"]
    assert sum(n for kind, n in view["bytes"].items() if kind != "total") == card.nbytes
    assert view["lineage"] == [{"hop": 0, "agent": "reader", "tokens_added": 59, "parent": None}]
    (segment,) = view["segments"]
    assert (segment["start"], segment["end"], segment["here"]) == (0, 59, True)
    assert segment["codec"]["name"] == codec.name
    assert view["identity"]["weights"] == card.manifest.identity.weights

    bits, expected = view["bits"], token_bits(card)
    assert expected is not None
    for name in ("keys", "values"):
        exact = getattr(expected, name)
        grid = np.frombuffer(base64.b64decode(bits[f"grid_{name}"]), np.uint8)
        shown = grid.reshape(exact.shape) * bits["unit"]
        assert np.abs(shown - exact).max() <= 0.51 * bits["unit"]
        assert bits[name] == pytest.approx(exact.mean(0), abs=1e-3)
        assert bits[f"layer_{name}"] == pytest.approx(exact.mean(1), abs=1e-3)
    mean = (np.array(bits["keys"]) + bits["values"]) / 2  # as many values as keys
    assert bits["all"] == pytest.approx(mean, abs=2e-3)


def test_a_signature_is_named(tokenizer: Any) -> None:
    signer = Signer.generate()
    assert card_view(make_card(), tokenizer)["signature"] is None
    assert card_view(make_card().signed(signer), tokenizer)["signature"] == {"key": signer.public}


def test_another_tokenizers_ids_are_given_no_text(tokenizer: Any) -> None:
    view = card_view(make_card(), tokenizer)
    assert view["texts"] is None
    assert view["ids"] == list(range(9))


def test_a_thin_card_is_shown_as_far_as_it_is_there(tokenizer: Any) -> None:
    view = card_view(make_card(Packed()).without(make_card(Packed(), (6,))), tokenizer)
    assert [segment["here"] for segment in view["segments"]] == [False, True]
    assert [number > 0 for number in view["bits"]["all"]] == [False] * 6 + [True] * 3


@pytest.mark.slow
@given(st.text(max_size=60), st.lists(st.integers(0, 255), max_size=12))
def test_texts_of_tokens_make_up_the_text(smollm2: Any, text: str, parts: list[int]) -> None:
    """Also where tokens end within characters, and of bytes that are none."""
    _, tokenizer = smollm2
    byte_ids = sorted(id for token, id in tokenizer.get_vocab().items() if len(token) == 1)
    ids = [*tokenizer(text)["input_ids"], *(byte_ids[n % len(byte_ids)] for n in parts)]
    texts = token_texts(tokenizer, np.array(ids, np.int32))
    assert len(texts) == len(ids)
    assert "".join(texts) == tokenizer.decode(ids, clean_up_tokenization_spaces=False)


def test_a_character_is_where_it_is_complete(smollm2: Any) -> None:
    _, tokenizer = smollm2
    texts = token_texts(tokenizer, np.array(tokenizer("see 🦊 run")["input_ids"], np.int32))
    assert [text for text in texts if text] == ["see", " 🦊", " run"]
    assert "" in texts


def test_lineage_of_a_store(tmp_path: Path) -> None:
    store = Store(tmp_path)
    root = make_card()
    one, two = root.fork("one"), root.fork("two")
    late = one.fork("late")
    for card in (root, one, two, late):
        store.put(card)
    seen = overview(store)
    assert {card["digest"]: card["parent"] for card in seen["cards"]} == {
        root.digest: None,
        one.digest: root.digest,
        two.digest: root.digest,
        late.digest: one.digest,
    }
    assert {card["agent"]: card["hop"] for card in seen["cards"]} == {
        "test": 1,
        "one": 2,
        "two": 2,
        "late": 3,
    }
    assert seen["gone"] == []
    assert seen["stats"]["cards"] == 4


def test_parents_that_are_gone_are_still_named(tmp_path: Path) -> None:
    store = Store(tmp_path)
    root = make_card(runs=(6,))
    middle = root.fork("middle")
    leaf = middle.fork("leaf")
    for card in (root, leaf):
        store.put(card)
    (gone,) = overview(store)["gone"]
    assert gone == {
        "digest": middle.digest,
        "agent": "middle",
        "hop": 1,
        "tokens_added": 0,
        "parent": root.digest,
    }
    store.remove(root.digest)
    assert [hop["digest"] for hop in overview(store)["gone"]] == [middle.digest, root.digest]


def test_of_a_long_line_only_the_nearest_are_named(tmp_path: Path) -> None:
    card = make_card()
    for _ in range(MOST_HOPS + 5):
        card = card.fork("again")
    store = Store(tmp_path)
    store.put(card)
    assert len(overview(store)["gone"]) == MOST_HOPS


def test_looking_is_no_use(tmp_path: Path, tokenizer: Any) -> None:
    store = Store(tmp_path)
    store.put(make_card(), ttl=1000)
    (before,) = store.ls()
    (seen,) = overview(store)["cards"]
    assert store.ls() == [before]
    shown = {name: seen[name] for name in msgspec.to_builtins(before)}
    assert shown == msgspec.to_builtins(before)
    assert seen["hits"] == 0
    assert seen["expires_at"] is not None


def test_a_damaged_card_does_not_hide_the_others(tmp_path: Path) -> None:
    store = Store(tmp_path)
    good, bad = store.put(make_card()), store.put(make_card(seed=1))
    path = store.folder.card_path(bad)
    path.write_bytes(path.read_bytes()[:-3])
    cards = {card["digest"]: card for card in overview(store)["cards"]}
    assert "the store/default/cards/" in cards[bad]["problem"]
    assert str(tmp_path) not in cards[bad]["problem"]
    assert cards[good]["bits_per_value"] == store.get(good).bits_per_value
