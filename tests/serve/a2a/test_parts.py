"""An answer as parts: text always, the card beside it."""

from __future__ import annotations

from typing import Any

import pytest
from a2a.types.a2a_pb2 import Part
from google.protobuf.json_format import MessageToDict

from qkvshare import CacheCard, Raw, capture
from qkvshare.card.errors import CardFormatError
from qkvshare.serve.a2a import MEDIA_TYPE, URI
from qkvshare.serve.a2a.extension import Announced, answer_parts, card_part, text_of

from ...conftest import tiny_tokenizer


@pytest.fixture(scope="module")
def card(llama: Any) -> CacheCard:
    return capture(llama, tiny_tokenizer(), "hello", codec=Raw())


@pytest.mark.parametrize(("room", "kind"), [(0, "raw"), (-1, "url")])
def test_a_card_is_in_the_answer_up_to_a_size(card: CacheCard, room: int, kind: str) -> None:
    text, part = answer_parts("yes", card, "http://a", card.nbytes + room)
    assert text.text == "yes"
    assert part.media_type == MEDIA_TYPE
    assert part.WhichOneof("content") == kind
    assert part.raw == (card.to_bytes() if kind == "raw" else b"")
    assert part.url == ("" if kind == "raw" else f"http://a/cards/{card.digest}")
    assert Announced.read(part) == Announced.of(card)


def test_numbers_travel_as_text(card: CacheCard) -> None:
    part = answer_parts("yes", card, "http://a", 0)[1]
    said = MessageToDict(part.metadata)[URI]
    assert said["tokens"] == str(card.tokens)
    assert said["bytes"] == str(len(card.to_bytes()))
    assert said["digest"] == card.digest


def test_text_that_repeats_the_card_can_be_told_from_other_text(card: CacheCard) -> None:
    parts = [*answer_parts("yes", card, "http://a", 0), Part(text="why?")]
    assert text_of(parts) == "yes\nwhy?"
    assert text_of(parts, besides=card.digest) == "why?"
    assert text_of(parts, besides="0" * 64) == "yes\nwhy?"
    assert text_of([Part(text="why?", metadata={URI: "x"})], besides="0" * 64) == "why?"


@pytest.mark.parametrize(
    "changed",
    [
        {"digest": "../../etc"},
        {"digest": None},
        {"tokens": "many"},
        {"bytes": "-1"},
        {"bytes": str(2**60)},
        {"identity": {}},
        {"codecs": "raw/1"},
    ],
    ids=str,
)
def test_what_a_part_says_is_checked(card: CacheCard, changed: dict[str, Any]) -> None:
    said = {**Announced.of(card).metadata()[URI], **changed}
    with pytest.raises(CardFormatError, match="metadata"):
        Announced.read(Part(url="http://a", media_type=MEDIA_TYPE, metadata={URI: said}))


def test_parts_have_one_card_or_none(card: CacheCard) -> None:
    text, part = answer_parts("yes", card, "http://a", 0)
    assert card_part([text]) is None
    assert card_part([text, part]) == part
    with pytest.raises(CardFormatError, match="2 cards"):
        card_part([part, part])
