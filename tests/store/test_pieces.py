"""A text is found in any prompt, whatever stands before it."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from qkvshare.card import CacheCard
from qkvshare.store import Store
from qkvshare.store.pieces import Chunks
from tests.cards import IDENTITY, make_card


def text(tokens: int, seed: int) -> list[int]:
    return np.random.default_rng(seed).integers(1, 50_000, tokens).tolist()


def card_of(ids: list[int]) -> CacheCard:
    return make_card(runs=(len(ids),), tokens=ids)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def found(store: Store, ids: list[int], first: int = 0) -> list[tuple[str, int, int, int]]:
    return [(p.card, p.start, p.at, p.tokens) for p in store.pieces(ids, IDENTITY, first)]


@given(st.lists(st.integers(0, 5), max_size=700))
def test_chunks_are_all_of_it_and_of_bounded_length(ids: list[int]) -> None:
    chunks = Chunks.of(ids, IDENTITY)
    lengths = np.diff(chunks.starts).tolist()
    assert sum(lengths) == len(ids)
    assert all(8 <= length <= 128 for length in lengths[:-1])
    assert len(chunks.names) == len(lengths)


def test_a_document_is_found_behind_another_prompt(store: Store) -> None:
    """To the token: names of chunks find it, and the ids tell where it begins and ends."""
    document = text(400, 1)
    card = card_of([*text(30, 2), *document, *text(9, 3)])
    store.put(card)
    prompt = [*text(77, 4), *document, *text(50, 5)]
    assert found(store, prompt) == [(card.digest, 30, 77, 400)]


def test_documents_of_several_cards_in_another_order(store: Store) -> None:
    one, two = text(200, 1), text(150, 2)
    a, b = card_of([*text(20, 3), *one]), card_of([*text(33, 4), *two])
    store.put(a)
    store.put(b)
    prompt = [*text(12, 5), *two, *text(5, 6), *one, *text(12, 7)]
    assert found(store, prompt) == [(b.digest, 33, 12, 150), (a.digest, 20, 167, 200)]
    # What the prompt's beginning has already is not given again.
    assert found(store, prompt, first=100) == [(b.digest, 121, 100, 62), (a.digest, 20, 167, 200)]


def test_the_card_that_has_most_of_it(store: Store) -> None:
    whole = text(300, 1)
    store.put(card_of([*text(10, 2), *whole[:120]]))
    longer = card_of([*text(10, 3), *whole])
    store.put(longer)
    assert found(store, [*text(40, 4), *whole]) == [(longer.digest, 10, 40, 300)]


def test_short_pieces_other_models_and_others_texts_are_none(store: Store) -> None:
    document = text(300, 1)
    digest = store.put(card_of(document))
    assert found(store, [*text(40, 2), *document[100:120], *text(40, 3)]) == []
    assert found(store, text(400, 9)) == []
    assert found(store, []) == []
    other = replace(IDENTITY, weights="9" * 64)
    assert store.pieces([*text(40, 2), *document], other) == []
    store.set_aside(digest)
    assert found(store, [*text(40, 2), *document]) == []
    store.put(card_of(document), vouched=False)
    assert found(store, [*text(40, 2), *document]) == []


def test_tenants_share_no_name(tmp_path: Path) -> None:
    document = text(300, 1)
    alice, bob = (Store(tmp_path, tenant=name) for name in ("alice", "bob"))
    alice.put(card_of(document).salted(alice.salt))
    assert found(alice, [*text(40, 2), *document])
    assert not found(bob, [*text(40, 2), *document])
    names = [set(Chunks.of(document, IDENTITY, at.salt).names) for at in (alice, bob)]
    assert not names[0] & names[1]


def test_removed_and_damaged_cards_are_passed_over(store: Store) -> None:
    document = text(300, 1)
    card = card_of([*text(10, 2), *document])
    store.put(card)
    prompt = [*text(40, 3), *document]
    path = store.folder.card_path(card.digest)
    kept = path.read_bytes()
    path.write_bytes(kept[:100])
    assert found(store, prompt) == []
    path.write_bytes(kept)
    assert found(store, prompt) == [(card.digest, 10, 40, 300)]
    store.remove(card.digest)
    assert found(store, prompt) == []
    assert store.index.rows("SELECT * FROM piece") == []


def test_names_that_are_equal_by_chance_are_not_believed(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ids are compared, always."""
    document = text(300, 1)
    card = card_of(document)
    store.put(card)
    other = [*document[:150], document[150] + 1, *document[151:]]
    ends = Chunks.of(document, IDENTITY)
    monkeypatch.setattr(
        Chunks, "of", lambda ids, *_: Chunks(np.array(ids), ends.starts, ends.names)
    )
    assert found(store, other) == []


def test_an_index_of_the_version_before(tmp_path: Path) -> None:
    """It is brought up to date; cards that are put again have pieces."""
    store = Store(tmp_path / "store")
    document = text(300, 1)
    card = card_of(document)
    store.put(card)
    store.close()
    with sqlite3.connect(store.folder.root / "index.sqlite") as old:
        old.execute("DROP TABLE piece")
        old.execute("PRAGMA user_version = 1")
    old.close()
    store = Store(tmp_path / "store")
    assert store.match(document, IDENTITY) is not None
    assert found(store, document) == []
    store.put(card)
    assert found(store, document) == [(card.digest, 0, 0, 300)]
