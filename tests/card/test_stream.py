"""A card's file in pieces is the file."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qkvshare import CacheCard
from qkvshare.card.errors import CardDigestError

from ..cards import make_card


@pytest.fixture(scope="module")
def card() -> CacheCard:
    return make_card()


def test_all_pieces_are_the_file(card: CacheCard, tmp_path: Path) -> None:
    stream = card.stream()
    data = b"".join(stream())
    assert len(data) == stream.nbytes == card.nbytes
    (tmp_path / "passed.card").write_bytes(data)
    loaded = CacheCard.load(tmp_path / "passed.card")
    assert loaded.digest == card.digest
    assert data == card.to_bytes()


@given(st.data())
def test_any_part_is_that_part(card: CacheCard, data: st.DataObject) -> None:
    whole = card.to_bytes()
    start = data.draw(st.integers(0, len(whole)))
    stop = data.draw(st.integers(start, len(whole)))
    assert b"".join(card.stream()(start, stop)) == whole[start:stop]


def test_damaged_bytes_do_not_pass(card: CacheCard, tmp_path: Path) -> None:
    damaged = bytearray(card.to_bytes())
    damaged[-1] ^= 1
    (tmp_path / "damaged.card").write_bytes(damaged)
    with pytest.raises(CardDigestError):
        list(CacheCard.load(tmp_path / "damaged.card").stream()())
