"""Models that keep recurrent or convolution states beside keys and values."""

from __future__ import annotations

import copy
import warnings
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import DynamicCache

from qkvshare import (
    CacheCard,
    IdentityError,
    Packed,
    Raw,
    Store,
    Transform,
    UnsupportedModelError,
    capture,
    capture_cache,
    load_cache,
    save_cache,
)
from qkvshare.card.errors import BudgetError, CaptureError, CardThinError, PromptError
from qkvshare.codecs.stats import describe, sizes
from qkvshare.codecs.trimming import trim
from qkvshare.hf.cache.counting import as_argument
from qkvshare.hf.cache.observe import observe
from qkvshare.hf.cache.states import take_states
from qkvshare.hf.calibrate.calibrate import calibrate
from qkvshare.hf.model.identity import identify
from tests.conftest import tiny_model as small
from tests.conftest import tiny_tokenizer
from tests.models.tiny import greedy, some_ids, tiny_model

# Gated delta rule, short convolutions, Mamba 2, states and attention in one layer, states beside
# sliding windows, a model that reads one new token at a time, and one that compresses windows.
FEW = ["qwen3_5_text", "falcon_h1"]
MORE = ["qwen3_next", "lfm2", "granitemoehybrid", "nemotron_h", "inkling_text", "jamba"]
MORE += ["deepseek_v4"]
ALONE = ["mamba", "mamba2"]  # no attention; more in test_states_alone
NAMES = [*FEW, *(pytest.param(name, marks=pytest.mark.slow) for name in [*MORE, *ALONE])]
CONTEXT = 72


@cache
def tiny(name: str) -> Any:
    return tiny_model(name)


@pytest.fixture(params=NAMES)
def model(request: pytest.FixtureRequest) -> Any:
    return tiny(request.param)


@pytest.fixture
def qwen() -> Any:
    return tiny("qwen3_5_text")


def ids_of(model: Any, count: int = CONTEXT, seed: int = 1) -> list[int]:
    return some_ids(model, count, seed)


def from_text(model: Any, ids: list[int], tokens: int = 64) -> list[int]:
    rows = torch.tensor([ids])
    return greedy(model, tokens, input_ids=rows, attention_mask=torch.ones_like(rows))[0]


def from_card(model: Any, card: CacheCard, new: list[int], tokens: int = 64, **how: Any) -> Any:
    return greedy(model, tokens, **card.inputs(model, new=new, **how))[0]


def generated(model: Any, card: CacheCard, new: list[int], tokens: int = 8) -> Any:
    return model.generate(
        **card.inputs(model, new=new),
        max_new_tokens=tokens,
        do_sample=False,
        return_dict_in_generate=True,
    )


def raw(model: Any, ids: list[int], **how: Any) -> CacheCard:
    return capture(model, None, ids, codec=Raw(), **how)


def test_a_lossless_card_gives_the_same_64_tokens(model: Any, tmp_path: Path) -> None:
    ids, new = ids_of(model), ids_of(model, 5, seed=3)
    card = CacheCard.load(raw(model, ids).save(tmp_path / "card"))
    assert card.manifest.states
    assert from_card(model, card, new) == from_text(model, ids + new)
    assert from_card(model, card, []) == from_text(model, ids)  # an exact hit


@pytest.mark.parametrize("tokens", [1, 2, 3])
def test_short_contexts(model: Any, tokens: int) -> None:
    ids, new = ids_of(model, tokens), ids_of(model, 5, seed=3)
    card = raw(model, ids)
    assert from_card(model, card, new, 16) == from_text(model, ids + new, 16)
    assert from_card(model, card, [], 16) == from_text(model, ids, 16)


def test_chains_grow_and_are_compacted(model: Any, tmp_path: Path) -> None:
    ids, new = ids_of(model), ids_of(model, 5, seed=3)
    card = raw(model, ids)
    for seed in (4, 5):
        card = card.extend(model, generated(model, card, ids_of(model, 3, seed)), agent="B")
    assert len(card.manifest.segments) == 3
    expected = from_text(model, [*map(int, card.token_ids), *new], 24)
    card = CacheCard.load(card.save(tmp_path / "card"))
    assert from_card(model, card, new, 24) == expected
    compact = CacheCard.load(card.compact().save(tmp_path / "compact"))
    compact.verify()
    assert from_card(model, compact, new, 24) == expected
    assert compact.state_bytes == card.state_blob(2).nbytes < card.state_bytes
    for part in (card.head(CONTEXT), card.salted("1" * 64).head(CONTEXT)):
        part.verify()
        assert from_card(model, part, new, 24) == from_text(model, ids + new, 24)


def test_thin_cards_and_forks(qwen: Any) -> None:
    ids, new = ids_of(qwen), ids_of(qwen, 5, seed=3)
    parent = raw(qwen, ids)
    child = parent.extend(qwen, generated(qwen, parent, new), agent="B")
    thin = child.without(parent)
    cached = parent.inputs(qwen, new=new)["past_key_values"]
    with pytest.raises(CardThinError):
        thin.inputs(qwen, new=new, cached=cached)
    whole = thin.whole(parent)
    assert whole.digest == child.digest
    expected = from_text(qwen, [*map(int, child.token_ids), *new], 24)
    assert from_card(qwen, whole, new, 24) == expected
    assert from_card(qwen, child.fork("C"), new, 24) == expected


def test_live_caches_are_read_again_and_saved(model: Any, tmp_path: Path) -> None:
    ids, new = ids_of(model), ids_of(model, 5, seed=3)
    rows = torch.tensor([ids])
    out = model.generate(
        input_ids=rows,
        attention_mask=torch.ones_like(rows),
        max_new_tokens=2,
        do_sample=False,
        return_dict_in_generate=True,
    )
    cache, said = out.past_key_values, out.sequences[0].tolist()
    card = capture_cache(model, cache, said[:-1], codec=Raw())
    assert from_card(model, card, new, 24) == from_text(model, said[:-1] + new, 24)
    path = save_cache(cache, said, tmp_path / "cache", model)
    loaded, of = load_cache(path, model)
    assert of[0].tolist() == said
    kept = observe(model)
    if not kept.stepwise or not kept.layers:  # that is transformers' own fault, without a card
        again = torch.cat([of, torch.tensor([new])], 1)
        found = greedy(model, 24, input_ids=again, **as_argument(model, loaded))[0]
        assert found == from_text(model, said + new, 24)


def test_states_are_rounded_to_8_or_4_bits(qwen: Any) -> None:
    ids, new = ids_of(qwen), ids_of(qwen, 5, seed=3)
    cards = {bits: capture(qwen, None, ids, state_bits=bits) for bits in (4, 8, 32)}
    default = capture(qwen, None, ids)
    assert default.state_bytes == cards[8].state_bytes
    assert cards[4].state_bytes < cards[8].state_bytes < cards[32].state_bytes
    # What the context costs is the same.
    assert {round(card.bits_per_value, 1) for card in cards.values()} == {
        round(default.bits_per_value, 1)
    }
    with torch.no_grad():
        expected = qwen(input_ids=torch.tensor([ids + new])).logits[0, -1].log_softmax(-1)
        off = {}
        for bits in cards:
            exact = raw(qwen, ids, state_bits=bits)  # but for the states
            found = qwen(**exact.inputs(qwen, new=new, new_only=True)).logits[0, -1]
            off[bits] = float((found.log_softmax(-1) - expected).abs().mean())
    assert 20 * off[32] < off[8]
    assert 4 * off[8] < off[4]
    assert sizes(default)["total"] == default.nbytes
    assert sizes(default)["states"] == default.state_bytes > 0
    assert describe(default)["segments"][0]["state_bits"] == 8
    with pytest.raises(BudgetError, match=r"state_bits=5"):
        capture(qwen, None, ids, state_bits=5)


def test_the_budget_is_for_keys_and_values(qwen: Any) -> None:
    card = capture(qwen, None, ids_of(qwen, 200), bits=12)
    assert card.bits_per_value <= 12
    assert card.nbytes == card.context_bytes + card.state_bytes


def test_beams_and_samples_go_on_from_one_state(model: Any) -> None:
    ids, new = ids_of(model), ids_of(model, 5, seed=3)
    card, rows = raw(model, ids), torch.tensor([ids + new])
    how = {"max_new_tokens": 8, "num_beams": 3, "num_return_sequences": 3, "do_sample": False}
    expected = model.generate(input_ids=rows, attention_mask=torch.ones_like(rows), **how)
    assert torch.equal(model.generate(**card.inputs(model, new=new), **how), expected)


@pytest.mark.parametrize("kv_format", ["bfloat16", "codes"])
def test_other_formats_of_the_cache(model: Any, kv_format: Any) -> None:
    ids, new = ids_of(model), ids_of(model, 5, seed=3)
    card = capture(model, None, ids, codec=Packed())
    numbers = set(observe(model).numbers)
    if not numbers or {at.layer for at in card.manifest.states} & numbers:
        with pytest.raises(UnsupportedModelError, match=r"(beside|no) keys and values"):
            card.inputs(model, new=new, kv_format=kv_format)
    else:
        expected = from_card(model, card, new, 8)
        assert from_card(model, card, new, 8, kv_format=kv_format) == expected


def test_a_refused_read_spoils_the_cache(qwen: Any) -> None:
    ids, new = ids_of(qwen), ids_of(qwen, 5, seed=3)
    card = raw(qwen, ids)
    inputs = card.inputs(qwen, new=new)
    cache = inputs["past_key_values"]
    with pytest.raises(PromptError, match=r"tokens are read after"):
        qwen(input_ids=torch.tensor([ids + new]), past_key_values=cache, use_cache=True)
    with pytest.raises(PromptError, match=r"refused before"):
        greedy(qwen, 8, **inputs)


def test_a_model_of_other_shapes_refuses(qwen: Any) -> None:
    card, lfm2 = raw(qwen, ids_of(qwen)), tiny("lfm2")
    with pytest.raises(IdentityError):
        card.inputs(lfm2, new=[5])
    with pytest.raises(BudgetError, match=r"keeps no"):
        capture(tiny("qwen2"), None, [5, 6, 7], state_bits=8)


def test_a_store_finds_the_longest_beginning(model: Any, tmp_path: Path) -> None:
    store, ids, new = Store(tmp_path), ids_of(model), ids_of(model, 5, seed=3)
    parent = raw(model, ids)
    child = parent.extend(model, generated(model, parent, new))
    store.put(child)
    prompt = np.array([*ids, *new[:2], 9, 9, 9], np.int32)  # goes on otherwise
    found = store.match(prompt, identify(model))
    assert found is not None
    assert found.tokens == len(ids)
    card = store.get(found.card, found.tokens)
    said = greedy(model, 24, **card.inputs(model, prompt_ids=prompt))[0]
    assert said == from_text(model, prompt.tolist(), 24)
    assert store.audit().ok


@pytest.mark.parametrize("checkpoints", [20, [30, 31, 71], [72]])
def test_checkpoints_serve_prompts_that_go_on_otherwise(
    model: Any, checkpoints: Any, tmp_path: Path
) -> None:
    ids, new = ids_of(model), ids_of(model, 5, seed=3)
    card = raw(model, ids, checkpoints=checkpoints, agent="A")
    ends = [segment.end for segment in card.manifest.segments]
    assert ends == ([20, 40, 60, 72] if checkpoints == 20 else sorted({*checkpoints, 72}))
    assert [(hop.agent, hop.tokens_added) for hop in card.manifest.lineage] == [("A", 72)]
    card = CacheCard.load(card.save(tmp_path / "card"))
    assert from_card(model, card, new, 24) == from_text(model, ids + new, 24)
    for end in ends:
        head = card.head(end)
        assert from_card(model, head, new, 24) == from_text(model, ids[:end] + new, 24)
        # Nemotron-H in transformers computes one token at a time by other limits than many at once.
        assert from_card(model, head, [], 8) == from_text(model, ids[:end], 8)


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma3"])
def test_checkpoints_of_models_without_states(family: str) -> None:
    other, new = small(family), [9, 8, 7]
    ids = ids_of(other)
    card = raw(other, ids, checkpoints=[10, 40])
    assert [segment.end for segment in card.manifest.segments] == [10, 40, 72]
    for end in (10, 40, 72):
        found = from_card(other, card.head(end), new, 24)
        assert found == from_text(other, ids[:end] + new, 24)
        assert from_card(other, card.head(end), [], 24) == from_text(other, ids[:end], 24)


def test_checkpoints_at_messages() -> None:
    llama, tokenizer = small("llama"), tiny_tokenizer()
    messages = [
        {"role": "user", "content": "the tide is low"},
        {"role": "assistant", "content": "at noon"},
        {"role": "user", "content": "and then?"},
    ]
    card = capture(llama, tokenizer, messages, codec=Raw(), checkpoints="messages")
    starts = [segment.start for segment in card.manifest.segments]
    said = [tokenizer.decode(card.token_ids[at : at + 6]) for at in starts]
    assert said == ["[user]", "[assis", "[user]"]
    for wrong in (0, [0], [1000], "words", -3):
        with pytest.raises(CaptureError, match=r"checkpoints="):
            capture(llama, tokenizer, messages, checkpoints=wrong)  # type: ignore[arg-type]
    with pytest.raises(CaptureError, match=r"checkpoints="):
        capture(llama, tokenizer, "a text", checkpoints="messages")


def test_checkpoints_go_on_from_a_parent(qwen: Any) -> None:
    ids = ids_of(qwen)
    parent = raw(qwen, ids[:30], agent="A")
    card = raw(qwen, ids, parent=parent, checkpoints=20, agent="B")
    assert [segment.end for segment in card.manifest.segments] == [30, 40, 60, 72]
    hops = [(hop.agent, hop.tokens_added, hop.parent) for hop in card.manifest.lineage]
    assert hops == [("A", 30, None), ("B", 42, parent.digest)]


def test_tokens_and_heads_are_measured(model: Any) -> None:
    """Attention is watched and gradients pass, as in models without states."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*count alike.*")
        capture(model, None, ids_of(model))


def test_a_profile_serves_and_refinements_are_cut(qwen: Any) -> None:
    profile = calibrate(qwen, [ids_of(qwen, 200, seed) for seed in range(8)], 40)
    codec = replace(Transform.of(profile), refinements=1)
    card = capture(qwen, None, ids_of(qwen, 200), codec=codec, bits=12)
    smaller = trim(card, card.bits_per_value - 0.5)
    assert smaller.bits_per_value <= card.bits_per_value - 0.5
    assert smaller.state_bytes == card.state_bytes
    assert len(from_card(qwen, smaller, [5, 6], 8)) == 8


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "name", ["qwen3_5_text", "granitemoehybrid", "lfm2", "falcon_h1", "deepseek_v4"]
)
def test_models_in_half_precision(name: str, dtype: torch.dtype) -> None:
    other = copy.deepcopy(tiny(name)).to(dtype)
    ids, new = ids_of(other), ids_of(other, 5, seed=3)
    card = raw(other, ids)
    rows = torch.tensor([ids])
    cache = DynamicCache(config=other.config)
    with torch.no_grad():  # read as a card is: the last token behind all others
        other(input_ids=rows[:, :-1], past_key_values=cache, use_cache=True)
        rest = torch.tensor([[ids[-1], *new]])
        expected = other(input_ids=rest, past_key_values=cache, use_cache=True).logits
        found = other(**card.inputs(other, new=new, new_only=True)).logits
    assert torch.equal(found, expected)


def test_states_that_are_no_numbers(qwen: Any) -> None:
    other = copy.deepcopy(qwen)
    with torch.no_grad():
        other.model.layers[0].linear_attn.A_log.fill_(float("nan"))
    with pytest.raises((CaptureError, UnsupportedModelError)):
        raw(other, ids_of(other))
    cache = DynamicCache(config=qwen.config)
    with torch.no_grad():
        qwen(input_ids=torch.tensor([[5, 6]]), past_key_values=cache, use_cache=True)
    cache.layers[0].recurrent_states[0].fill_(float("inf"))
    with pytest.raises(CaptureError, match=r"recurrent state of layer 0 contains NaN, infinity"):
        take_states(cache, observe(qwen).states)
