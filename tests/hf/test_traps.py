"""Each mistake that plain transformers accepts in silence: shown to give wrong text there, and to
be impossible or refused here."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from transformers import DynamicCache

from qkvshare import Raw, capture, capture_cache
from qkvshare.card.errors import CaptureError, IdentityError, PromptError, UnsupportedModelError

from ..conftest import greedy, greedy_from_text, some_ids, tiny_model
from .test_handoff import live_cache

CONTEXT, OTHER, NEW = some_ids(40), some_ids(40, seed=9), some_ids(7, seed=1)


@pytest.fixture
def expected(llama: Any) -> list[int]:
    return greedy_from_text(llama, CONTEXT + NEW)


def full(ids: list[int], cache: Any) -> dict[str, Any]:
    tokens = torch.tensor([ids])
    return {
        "input_ids": tokens,
        "attention_mask": torch.ones_like(tokens),
        "past_key_values": cache,
    }


def test_wrong_prefix(llama: Any, expected: list[int]) -> None:
    wrong = live_cache(llama, OTHER)
    assert greedy(llama, **full(CONTEXT + NEW, wrong)) != expected  # accepted, wrong text

    card = capture(llama, None, OTHER, codec=Raw())
    with pytest.raises(PromptError, match="does not continue the card: at token 0"):
        card.inputs(llama, prompt_ids=CONTEXT + NEW)


def test_prefix_with_one_other_token(llama: Any) -> None:
    ids = [*CONTEXT[:20], (CONTEXT[20] + 1) % 90 + 3, *CONTEXT[21:]]
    assert greedy_from_text(llama, ids) != greedy_from_text(llama, CONTEXT)
    card = capture(llama, None, ids, codec=Raw())
    with pytest.raises(PromptError, match="at token 20"):
        card.inputs(llama, prompt_ids=CONTEXT + NEW)


def test_cache_captured_with_ids_of_another_context(llama: Any) -> None:
    cache = live_cache(llama, CONTEXT)
    one_wrong = [*CONTEXT[:30], CONTEXT[31], *CONTEXT[31:]]
    with pytest.raises(CaptureError, match="first at token 30"):
        capture_cache(llama, cache, one_wrong)
    with pytest.raises(CaptureError, match="first at token 0"):
        capture_cache(llama, cache, OTHER)


def test_one_weight_changed(llama: Any) -> None:
    other = copy.deepcopy(llama)
    with torch.no_grad():
        other.model.layers[1].self_attn.v_proj.weight[0, 0] += 50
    theirs = greedy_from_text(other, CONTEXT + NEW)
    mixed = greedy(other, **full(CONTEXT + NEW, live_cache(llama, CONTEXT)))
    assert mixed != theirs  # accepted, neither model's text

    card = capture(llama, None, CONTEXT, codec=Raw())
    with pytest.raises(IdentityError, match="weights: card has .*, receiver has"):
        card.inputs(other, new=NEW)


def test_exact_hit(llama: Any) -> None:
    expected = greedy_from_text(llama, CONTEXT)
    assert greedy(llama, **full(CONTEXT, live_cache(llama, CONTEXT))) != expected

    card = capture(llama, None, CONTEXT, codec=Raw())
    assert greedy(llama, **card.inputs(llama)) == expected
    assert greedy(llama, **card.inputs(llama, prompt_ids=CONTEXT)) == expected


def test_new_ids_without_mask(llama: Any, expected: list[int]) -> None:
    longer = NEW + some_ids(60, seed=3)
    ids = torch.tensor([longer])
    wrong = greedy(llama, input_ids=ids, past_key_values=live_cache(llama, CONTEXT))
    right = greedy_from_text(llama, CONTEXT + longer)
    assert wrong != right

    card = capture(llama, None, CONTEXT, codec=Raw())
    assert greedy(llama, **card.inputs(llama, new=longer)) == right


def test_generate_changes_the_cache_it_is_given(llama: Any) -> None:
    cache = live_cache(llama, CONTEXT)
    greedy(llama, **full(CONTEXT + NEW, cache))
    assert cache.get_seq_length() > len(CONTEXT)

    cache = live_cache(llama, CONTEXT)
    before = [layer.keys.clone() for layer in cache.layers]
    card = capture_cache(llama, cache, CONTEXT, codec=Raw())
    greedy(llama, **card.inputs(llama, new=NEW))
    assert cache.get_seq_length() == len(CONTEXT)
    assert all(torch.equal(a, b.keys) for a, b in zip(before, cache.layers, strict=True))


def test_sliding_length_is_restored() -> None:
    model = tiny_model("gemma3")
    expected = greedy_from_text(model, CONTEXT + NEW)
    rebuilt = DynamicCache(config=model.config)
    for number, layer in enumerate(live_cache(model, CONTEXT).layers):
        rebuilt.update(layer.keys, layer.values, number)
    assert rebuilt.layers[0].get_seq_length() != len(CONTEXT)
    assert greedy(model, **full(CONTEXT + NEW, rebuilt)) != expected

    card = capture(model, None, CONTEXT, codec=Raw())
    assert greedy(model, **card.inputs(model, new=NEW)) == expected


@pytest.mark.parametrize("family", ["mistral", "gemma3"])
def test_cache_without_config_gets_its_windows(family: str) -> None:
    model = tiny_model(family)
    plain = DynamicCache()
    with torch.no_grad():
        model(input_ids=torch.tensor([CONTEXT]), past_key_values=plain)
    card = capture_cache(model, plain, CONTEXT, codec=Raw())
    assert greedy(model, **card.inputs(model, new=NEW)) == greedy_from_text(model, CONTEXT + NEW)


def test_windows_that_are_not_the_models(llama: Any) -> None:
    """What inject would refuse, capture does."""
    cache = live_cache(tiny_model("mistral"), CONTEXT)
    for layer in cache.layers:
        layer.keys, layer.values = torch.randn(2, 1, 2, 7, 8)
    with pytest.raises(UnsupportedModelError, match=r"could be injected: layer 0 \(window"):
        capture_cache(llama, _shortened(cache), CONTEXT[:7])


def _shortened(cache: Any) -> Any:
    for layer in cache.layers:
        layer.cumulative_length = 7
    return cache


@pytest.mark.parametrize("family", ["mistral", "gemma3"])
def test_what_a_sliding_first_layer_has_forgotten_is_read_again(family: str) -> None:
    """A live cache of other ids than those given, where layer 0 cannot tell, makes a card of the
    ids given: its text is theirs."""
    model = tiny_model(family)
    wrong = list(CONTEXT)
    wrong[3] += 1
    card = capture_cache(model, live_cache(model, CONTEXT), wrong, codec=Raw())
    assert greedy(model, **card.inputs(model, new=NEW)) == greedy_from_text(model, wrong + NEW)
    with pytest.raises(CaptureError, match="first at token 36"):
        capture_cache(model, live_cache(model, CONTEXT), CONTEXT[:36] + OTHER[36:])

    # What comes from a card is known; only what was fed behind it is read again.
    grown = OTHER[:20]
    given = card.inputs(model, new=grown, new_only=True)
    cache = given["past_key_values"]
    with torch.no_grad():
        model(**given)
    claimed = list(grown)
    claimed[2] += 1
    whole = [*wrong, *claimed]
    longer = capture_cache(model, cache, whole)
    assert longer.manifest.segments[:1] == card.manifest.segments
    assert greedy(model, **longer.inputs(model, new=NEW)) == greedy_from_text(model, whole + NEW)


def test_a_card_cropped_and_gone_on_from_is_not_taken_at_its_word(llama: Any) -> None:
    card = capture(llama, None, CONTEXT, codec=Raw())
    cache = card.inputs(llama, new=NEW, new_only=True)["past_key_values"]
    cache.crop(-20)
    with torch.no_grad():
        llama(input_ids=torch.tensor([OTHER[:20]]), past_key_values=cache)
    with pytest.raises(CaptureError, match="first at token 20"):
        capture_cache(llama, cache, CONTEXT)


def test_exact_hit_on_a_full_window_of_a_live_cache() -> None:
    kinds = ["full_attention", "sliding_attention", "full_attention"]
    model = tiny_model("gemma3", layer_types=kinds)
    card = capture_cache(model, live_cache(model, CONTEXT), CONTEXT, codec=Raw())
    with pytest.raises(PromptError, match="cannot roll back"):
        card.inputs(model)
    # read by capture itself, the card keeps the one token more that this takes
    card = capture(model, None, CONTEXT, codec=Raw())
    assert greedy(model, **card.inputs(model)) == greedy_from_text(model, CONTEXT)


def test_whole_prompt_passed_as_new_ids(llama: Any) -> None:
    card = capture(llama, None, CONTEXT, codec=Raw())
    with pytest.raises(PromptError, match="repeats the card's 40 tokens"):
        card.inputs(llama, new=CONTEXT + NEW)
