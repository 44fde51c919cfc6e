"""Salts: two tenants' cards of one prompt have no digest in common, and say the same."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.codecs import Uniform
from qkvshare import CacheCard, Transform, trim
from qkvshare.card.container import blob_name
from qkvshare.card.errors import CardDigestError, CardError, CardThinError

from ..cards import make_card
from ..profiles import made_up_profile
from .test_reshaping import decoded

A, B = "a" * 64, "b" * 64
SALTS = st.none() | st.binary(min_size=32, max_size=32).map(bytes.hex)


def digests(card: CacheCard) -> set[str]:
    """Every digest that a card shows, but those of the model it is bound to."""
    manifest = msgspec.to_builtins(card.manifest)
    del manifest["identity"]
    shown = [card.digest, *card.manifest.names, msgspec.json.encode(manifest).decode()]
    return set(re.findall("[0-9a-f]{64}", " ".join(shown)))


@pytest.mark.parametrize("joined", [False, True])
def test_two_tenants_with_one_prompt_share_no_digest(joined: bool) -> None:
    cards = [make_card(salt=salt, joined=joined) for salt in (None, A, B)]
    for at, card in enumerate(cards):
        other = cards[at - 1]
        assert len(digests(card)) >= 7  # the card, two segments, two chains, blobs
        assert not digests(card) & digests(other)
        assert not digests(card.compact()) & digests(other.compact())
        assert decoded(card) == decoded(other)


@settings(max_examples=30)
@given(
    runs=st.lists(st.integers(1, 20), min_size=1, max_size=4).map(tuple),
    joined=st.booleans(),
    salts=st.tuples(SALTS, SALTS),
)
def test_salted_is_the_card_that_was_made_with_the_salt(
    tmp_path_factory: pytest.TempPathFactory, runs: Any, joined: bool, salts: Any
) -> None:
    path = tmp_path_factory.mktemp("cards") / "card"
    cards = [make_card(Uniform(4), runs, joined=joined, salt=salt) for salt in salts]
    turned = cards[0].salted(salts[1])
    assert turned.manifest == cards[1].manifest
    loaded = CacheCard.load(turned.save(path))
    loaded.verify()
    assert loaded.digest == cards[1].digest
    assert path.read_bytes() == cards[1].save(path).read_bytes()
    assert turned.salted(salts[0]).manifest == cards[0].manifest


@pytest.mark.parametrize("salt", ["", "a" * 63, "A" * 64, "a" * 64 + "\n"])
def test_what_is_no_salt_is_refused(salt: str) -> None:
    with pytest.raises(CardError, match="the salt is malformed"):
        make_card().salted(salt)


def test_compacted_card_can_be_salted() -> None:
    card = make_card().compact()
    turned = card.salted(A)
    turned.verify()
    assert decoded(turned) == decoded(card)
    assert turned.manifest.lineage == card.manifest.lineage


def test_children_keep_the_salt() -> None:
    card = make_card(salt=A)
    for child in (card.fork("b"), card.compact(), card.without(card)):
        assert child.manifest.salt == A
        child.verified()


def test_cards_of_two_salts_do_not_complete_each_other() -> None:
    mine, theirs = make_card(salt=A), make_card(salt=B)
    with pytest.raises(CardError, match="another salt"):
        mine.without(theirs)
    with pytest.raises(CardThinError, match="another salt"):
        mine.without(mine).whole(theirs)


def test_thin_card_cannot_be_salted() -> None:
    card = make_card(salt=A)
    with pytest.raises(CardThinError):
        card.without(card).salted(B)


def test_damaged_card_is_not_salted() -> None:
    card = make_card(salt=A)
    tensors = {name: np.copy(array) for name, array in card.tensors.items()}
    tensors[blob_name(1, 0)][-1] ^= 1
    with pytest.raises(CardDigestError):
        CacheCard(card.manifest, tensors).salted(B)


def test_trimmed_card_keeps_the_salt(tmp_path: Path) -> None:
    codec = replace(Transform.of(made_up_profile(2, apart=True)), refinements=1)
    card = make_card(codec.at(codec.basis.reference + 64), (600,), salt=A)
    smaller = trim(card, card.bits_per_value - 0.1)
    assert smaller.manifest.salt == A
    CacheCard.load(smaller.save(tmp_path / "card")).verify()
