"""Several cards in the rows of one cache: each row says what its card says alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from qkvshare import Raw, batch_inputs, capture, capture_cache
from qkvshare.card.errors import IdentityError, PromptError, UnsupportedModelError

from ..conftest import greedy, greedy_from_text, some_ids, tiny_model
from ..models import tiny

CONTEXTS = [some_ids(20), some_ids(33, seed=5), some_ids(7, seed=6)]
NEWS = [some_ids(5, seed=1), some_ids(2, seed=2), some_ids(9, seed=3)]
TOKENS = 12


def cards_of(model: Any, **how: Any) -> list[Any]:
    return [capture(model, None, ids, **how) for ids in CONTEXTS]


def rows(model: Any, arguments: Any) -> list[list[int]]:
    known = arguments["input_ids"].shape[1]
    found = model.generate(**arguments, max_new_tokens=TOKENS, do_sample=False, eos_token_id=None)
    return found[:, known:].tolist()


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_each_row_is_its_card(family: str) -> None:
    model = tiny_model(family)
    pairs = list(zip(CONTEXTS, NEWS, strict=True))
    expected = [greedy_from_text(model, [*one, *new])[:TOKENS] for one, new in pairs]
    assert rows(model, batch_inputs(cards_of(model, codec=Raw()), model, new=NEWS)) == expected
    packed = cards_of(model)
    alone = [
        greedy(model, **card.inputs(model, new=new))[:TOKENS]
        for card, new in zip(packed, NEWS, strict=True)
    ]
    assert rows(model, batch_inputs(packed, model, new=NEWS)) == alone


def test_no_new_tokens_and_one_card_twice(llama: Any) -> None:
    card = capture(llama, None, CONTEXTS[0], codec=Raw())
    found = rows(llama, batch_inputs([card, card], llama, new=[[], NEWS[0]]))
    assert found[0] == greedy_from_text(llama, CONTEXTS[0])[:TOKENS]
    assert found[1] == greedy_from_text(llama, [*CONTEXTS[0], *NEWS[0]])[:TOKENS]


def test_a_card_of_one_token_without_anything_new(llama: Any) -> None:
    """That token is read again, so its row of the cache has none."""
    cards = [capture(llama, None, ids, codec=Raw()) for ids in (CONTEXTS[0][:1], CONTEXTS[1])]
    found = rows(llama, batch_inputs(cards, llama, new=[[], NEWS[1]]))
    assert found[0] == greedy_from_text(llama, CONTEXTS[0][:1])[:TOKENS]
    assert found[1] == greedy_from_text(llama, [*CONTEXTS[1], *NEWS[1]])[:TOKENS]


def speak(model: Any, arguments: Any, **how: Any) -> dict[str, Any]:
    """What all rows have read when each has said ``TOKENS``, as `capture_cache` takes it."""
    mask = arguments["attention_mask"]
    said = model.generate(
        **arguments, max_new_tokens=TOKENS, do_sample=False, eos_token_id=None, **how
    )
    mask = torch.cat([mask, mask.new_ones(len(mask), TOKENS - 1)], 1)
    cache = arguments["past_key_values"]
    return {"ids": said[:, :-1], "cache": cache, "attention_mask": mask}


def test_a_row_is_captured_again(llama: Any) -> None:
    """Agents speak as a batch, and each hands over what it has."""
    arguments = batch_inputs(cards_of(llama, codec=Raw()), llama, new=NEWS)
    known = arguments["input_ids"].shape[1]
    live = speak(llama, arguments)
    for row, (context, new) in enumerate(zip(CONTEXTS, NEWS, strict=True)):
        ids = [*context, *new, *live["ids"][row, known:].tolist()]
        card = capture_cache(llama, row=row, codec=Raw(), **live)
        assert card.token_ids.tolist() == ids
        assert greedy(llama, **card.inputs(llama, new=NEWS[0])) == greedy_from_text(
            llama, [*ids, *NEWS[0]]
        )


def test_a_row_is_appended_to_its_card(llama: Any) -> None:
    """Keys that a lossy codec has changed are the card's, so nobody asks what ids they are of."""
    cards = cards_of(llama)
    live = speak(llama, batch_inputs(cards, llama, new=NEWS))
    for row, card in enumerate(cards):
        longer = capture_cache(llama, row=row, **live)
        first, _ = longer.manifest.segments
        assert first == card.manifest.segments[0]
        assert longer.manifest.lineage[-1].parent == card.digest


def test_a_row_that_was_cut_short(llama: Any) -> None:
    """What is read again after it is not the card's any more."""
    cards = cards_of(llama)
    arguments = batch_inputs(cards, llama, new=NEWS)
    speak(llama, arguments)
    cache, begun = arguments["past_key_values"], max(card.tokens for card in cards)
    cache.crop(begun - 4 - cache.get_seq_length())
    assert [cache.began_as(row) for row in range(3)] == [(card, card.tokens - 4) for card in cards]


def test_rows_that_change_places(llama: Any) -> None:
    cards = cards_of(llama)
    cache = batch_inputs(cards, llama, new=NEWS)["past_key_values"]
    cache.batch_select_indices(torch.tensor([2, 0]))
    cache.batch_repeat_interleave(2)
    cache.reorder_cache(torch.tensor([3, 0, 0, 1]))
    found = [cache.began_as(row)[0] for row in range(4)]
    assert found == [cards[0], cards[2], cards[2], cards[2]]


@pytest.mark.parametrize("family", ["mistral", "gemma3"])
def test_windows_are_refused(family: str) -> None:
    model = tiny_model(family)
    with pytest.raises(UnsupportedModelError, match="keep .*sliding"):
        batch_inputs(cards_of(model), model, new=NEWS)


def test_states_are_refused() -> None:
    model = tiny.tiny_model("qwen3_5_text")
    with pytest.raises(UnsupportedModelError, match="recurrent"):
        batch_inputs([capture(model, None, CONTEXTS[0])], model, new=NEWS[:1])


def test_a_model_that_counts_columns_is_refused() -> None:
    """Of MPT, which knows distances from columns alone."""
    model = tiny.tiny_model("mpt")
    with pytest.raises(UnsupportedModelError, match="beside padding"):
        batch_inputs(cards_of(model, codec=Raw()), model, new=NEWS)


def test_wrong_use(llama: Any) -> None:
    cards = cards_of(llama)
    with pytest.raises(PromptError, match="3 cards and 2 texts"):
        batch_inputs(cards, llama, new=NEWS[:2])
    with pytest.raises(PromptError, match="0 cards"):
        batch_inputs([], llama)
    other = tiny_model(seed=1)
    with pytest.raises(IdentityError):
        batch_inputs([cards[0], capture(other, None, CONTEXTS[1])], llama, new=NEWS[:2])
    arguments = batch_inputs(cards, llama, new=NEWS)
    rows(llama, arguments)
    with pytest.raises(PromptError):  # its cache has gone on
        rows(llama, arguments)
