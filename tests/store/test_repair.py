"""Damaged files, cards that nobody vouches for, odd numbers: what a store does about them."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from qkvshare.card import CacheCard, Key, Signer
from qkvshare.card.errors import CardError, CardThinError, CardWriteError, StoreError
from qkvshare.store import Store
from tests.cards import IDENTITY, make_card

KEY = Key(b"k" * 32)


def cut(path: Path) -> None:
    """As `Path` is left by a disk that was full."""
    os.truncate(path, 100)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def gone(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize("damage", [cut, flip, empty, gone])
@pytest.mark.parametrize("part", ["card", "segment"])
@pytest.mark.parametrize("key", [None, KEY], ids=["plain", "sealed"])
def test_a_put_repairs_what_is_damaged(
    tmp_path: Path, key: Key | None, part: str, damage: Callable[[Path], None]
) -> None:
    store = Store(tmp_path, key=key)
    card = make_card(runs=(40, 30)).salted(store.salt)
    other = card.fork("another card of the same segments")
    store.put(other)
    store.put(card)
    name = card.manifest.names[0]
    path = (
        store.folder.card_path(card.digest) if part == "card" else store.folder.segment_path(name)
    )
    damage(path)
    with pytest.raises(CardError):
        store.get(card.digest).verify()
    assert store.put(card) == card.digest
    store.get(card.digest).verify()
    store.get(other.digest).verify()
    assert store.audit().ok
    files = [path for path in store.folder.root.rglob("*") if path.suffix in (".card", ".segment")]
    assert store.stats()["bytes"] == sum(path.stat().st_size for path in files)


def test_a_thin_card_is_not_completed_by_a_damaged_segment(tmp_path: Path) -> None:
    store, parent, child = Store(tmp_path), make_card(runs=(6,)), make_card(runs=(6, 3))
    store.put(parent)
    flip(store.folder.segment_path(parent.manifest.names[0]))
    with pytest.raises(CardThinError, match="damaged"):
        store.put(child.without(parent))
    store.put(parent)
    store.get(store.put(child.without(parent))).verify()


def test_a_signature_is_added_to_a_card_that_is_there(tmp_path: Path) -> None:
    pytest.importorskip("cryptography")
    store, signed = Store(tmp_path), make_card().signed(Signer.generate())
    store.put(make_card())
    store.put(signed)
    assert store.get(signed.digest).signature == signed.signature
    store.put(make_card())
    assert store.get(signed.digest).signature == signed.signature


class TestVouching:
    def test_prompts_find_only_what_somebody_vouches_for(self, tmp_path: Path) -> None:
        store, card = Store(tmp_path), make_card()
        store.put(card, vouched=False)
        assert not store.vouched(card.digest)
        assert store.match(card.token_ids, IDENTITY) is None
        store.get(card.digest).verify()
        store.put(card)
        assert store.vouched(card.digest)
        store.put(card, vouched=False)  # whoever puts it again takes nothing back
        found = store.match(card.token_ids, IDENTITY)
        assert found is not None
        assert found.card == card.digest

    def test_a_card_set_aside_hides_no_other(self, tmp_path: Path) -> None:
        store, short, long = Store(tmp_path), make_card(runs=(6,)), make_card(runs=(6, 3))
        store.put(short)
        store.put(long)
        store.set_aside(long.digest)
        found = store.match(long.token_ids, IDENTITY)
        assert found is not None
        assert (found.card, found.tokens) == (short.digest, 6)
        store.get(long.digest).verify()
        store.put(long)
        found = store.match(long.token_ids, IDENTITY)
        assert found is not None
        assert found.tokens == 9


class TestNumbers:
    @pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf, -1.0])
    @pytest.mark.parametrize("name", ["ttl", "saved_ms"])
    def test_put(self, tmp_path: Path, name: str, number: float) -> None:
        store = Store(tmp_path)
        with pytest.raises(StoreError, match=f"{name}=.* expected a finite number"):
            store.put(make_card(), **{name: number})
        assert store.ls() == []

    @pytest.mark.parametrize("number", [math.nan, math.inf, -1.0])
    def test_elsewhere(self, tmp_path: Path, number: float) -> None:
        store, card = Store(tmp_path), make_card()
        store.put(card)
        with pytest.raises(StoreError, match="seconds="), store.lease(card.digest, number):
            pass
        with pytest.raises(StoreError, match="limit="):
            Store(tmp_path, limit=number)  # type: ignore[arg-type]
        with pytest.raises(StoreError, match="abandoned="):
            store.gc(abandoned=math.nan)


def test_a_fifo_is_no_card(tmp_path: Path) -> None:
    """Opening one would wait for a writer, for ever."""
    os.mkfifo(tmp_path / "a.card")
    with pytest.raises(CardError, match="no regular file"):
        CacheCard.load(tmp_path / "a.card")
    with pytest.raises(CardError):
        CacheCard.load(tmp_path)
    store, card = Store(tmp_path / "store"), make_card()
    store.put(card)
    path = store.folder.segment_path(card.manifest.names[0])
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(CardError, match="no regular file"):
        store.get(card.digest)
    with pytest.raises(CardWriteError, match="pipe"):
        store.put(card)
    path.unlink()
    store.put(card)
    store.get(card.digest).verify()
