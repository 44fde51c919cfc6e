"""What bad input gets: a typed error with what was found and expected, before the model runs."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    DynamicCache,
    Lfm2Config,
    QuantizedCache,
    StaticCache,
)

from benchmarks.codecs import Uniform
from qkvshare import Raw, capture, capture_cache
from qkvshare.card.errors import (
    BudgetError,
    CaptureError,
    CardExpiredError,
    CodecError,
    IdentityError,
    PromptError,
    UnsupportedModelError,
)

from ..conftest import VOCABULARY, some_ids, tiny_model, tiny_tokenizer
from .test_handoff import live_cache

CONTEXT, NEW = some_ids(40), some_ids(7, seed=1)
LIMIT = 256


@pytest.mark.parametrize("empty", [[], "", torch.empty(0, dtype=torch.long)])
def test_empty_context(llama: Any, tokenizer: Any, empty: Any) -> None:
    with pytest.raises(CaptureError, match="empty"):
        capture(llama, tokenizer, empty)


@pytest.mark.parametrize("bad", [VOCABULARY, -1, 2**40])
def test_ids_outside_the_vocabulary(llama: Any, bad: int) -> None:
    with pytest.raises(PromptError):
        capture(llama, None, [*CONTEXT, bad])
    card = capture(llama, None, CONTEXT)
    with pytest.raises(PromptError):
        card.inputs(llama, new=[bad])


def test_context_at_the_models_limit(llama: Any) -> None:
    full = capture(llama, None, some_ids(LIMIT))
    assert full.inputs(llama)["attention_mask"].shape == (1, LIMIT)  # the last token again
    with pytest.raises(PromptError, match=f"{LIMIT + 1} tokens are more than the {LIMIT}"):
        full.inputs(llama, new=NEW[:1])
    with pytest.raises(PromptError, match="more than"):
        capture(llama, None, some_ids(LIMIT + 1))


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("part", ["keys", "values"])
def test_non_finite_cache(llama: Any, part: str, poison: float) -> None:
    cache = live_cache(llama, CONTEXT)
    getattr(cache.layers[2], part)[0, 1, 17, 3] = poison
    with pytest.raises(CaptureError, match=f"the {part} of layer 2 contain NaN or infinity"):
        capture_cache(llama, cache, CONTEXT)


def test_cache_in_another_number_format(llama: Any) -> None:
    # plain transformers accepts this in silence
    cache = live_cache(llama, CONTEXT)
    for layer in cache.layers:
        layer.keys, layer.values = layer.keys.half(), layer.values.half()
    with pytest.raises(CaptureError, match=r"layer 0 of the cache is in torch.float16"):
        capture_cache(llama, cache, CONTEXT, codec=Raw())


def test_another_tokenizer_or_template(llama: Any) -> None:
    ours, theirs = tiny_tokenizer(), tiny_tokenizer()
    card = capture(llama, ours, "a context of some length")
    card.inputs(llama, theirs, NEW)
    theirs.add_tokens(["new"])
    with pytest.raises(IdentityError, match="tokenizer: card has"):
        card.inputs(llama, theirs, NEW)
    with pytest.raises(IdentityError, match="chat template: card has"):
        card.inputs(llama, tiny_tokenizer(template=False), NEW)


def test_card_that_does_not_know_its_tokenizer(llama: Any) -> None:
    card = capture(llama, None, CONTEXT)
    with pytest.raises(IdentityError, match="tokenizer: card has none"):
        card.inputs(llama, tiny_tokenizer(), NEW)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, "rope"),
        ({"rms_norm_eps": 1e-3}, "config"),
        ({"num_hidden_layers": 2}, "weights"),
    ],
)
def test_another_configuration(llama: Any, change: dict[str, Any], field: str) -> None:
    card = capture(llama, None, CONTEXT)
    with pytest.raises(IdentityError, match=f"{field}: card has"):
        card.inputs(tiny_model(**change), new=NEW)


def test_another_number_format(llama: Any) -> None:
    card = capture(llama, None, CONTEXT)
    with pytest.raises(IdentityError, match="dtype: card has float32, receiver has bfloat16"):
        card.inputs(copy.deepcopy(llama).bfloat16(), new=NEW)


def test_parent_that_is_another_context(llama: Any) -> None:
    parent = capture(llama, None, CONTEXT)
    with pytest.raises(CaptureError, match="do not go on from the parent's 40"):
        capture(llama, None, some_ids(50, seed=4), parent=parent)
    with pytest.raises(CaptureError, match="do not go on"):
        capture(llama, None, CONTEXT, parent=parent)
    with pytest.raises(IdentityError):
        capture(tiny_model(seed=1), None, CONTEXT + NEW, parent=parent)


def test_expired_card(llama: Any) -> None:
    card = capture(llama, None, CONTEXT, ttl=-1)
    with pytest.raises(CardExpiredError, match="expired at"):
        card.inputs(llama, new=NEW)
    capture(llama, None, CONTEXT, ttl=60).inputs(llama, new=NEW)


def test_origins_do_not_mix(llama: Any, tokenizer: Any) -> None:
    assert capture(llama, tokenizer, CONTEXT).token_ids.tolist() == CONTEXT
    with pytest.raises(CaptureError, match="its tokenizer"):
        capture(llama, None, "text")
    with pytest.raises(CaptureError, match="no chat template"):
        capture(llama, tiny_tokenizer(template=False), [{"role": "user", "content": "hi"}])
    card = capture(llama, None, CONTEXT)
    with pytest.raises(PromptError, match="not both"):
        card.inputs(llama, new=NEW, prompt_ids=CONTEXT + NEW)


@pytest.mark.parametrize("ids", [[[1, 2], [3, 4]], [1.5, 2.0], ["text"]])
def test_ids_that_are_none(llama: Any, ids: Any) -> None:
    with pytest.raises(PromptError, match="expected integers of shape"):
        capture(llama, None, ids)


def test_budget_is_met_or_refused(llama: Any) -> None:
    long = some_ids(250)
    unlimited = capture(llama, None, long, codec=Uniform())
    assert unlimited.manifest.segments[0].codec.parameters == {"bits": 8}
    for bits in (4, 3, 2):
        limit = capture(llama, None, long, codec=Uniform(bits)).bits_per_value * 1.02
        card = capture(llama, None, long, codec=Uniform(), bits=limit)
        assert card.manifest.segments[0].codec.parameters == {"bits": bits}
        assert card.bits_per_value <= limit
    with pytest.raises(BudgetError, match=r"the least for these 250 tokens is \d+\.\d+"):
        capture(llama, None, long, codec=Uniform(), bits=2)
    with pytest.raises(BudgetError, match="choose another codec"):
        capture(llama, None, long, codec=Raw(), bits=8)
    with pytest.raises(CodecError, match="no width of 5 bits"):
        Uniform(5)


def test_values_that_float16_scales_cannot_hold(llama: Any) -> None:
    cache = live_cache(llama, CONTEXT)
    cache.layers[1].values[0, 0, 3, 0] = -1e6
    with pytest.raises(CodecError, match="Use the codec 'raw'"):
        capture_cache(llama, cache, CONTEXT, codec=Uniform())
    capture_cache(llama, cache, CONTEXT, codec=Raw())


def test_caches_of_other_kinds(llama: Any) -> None:
    for empty in (
        StaticCache(config=llama.config, max_cache_len=64),
        QuantizedCache("fp8", config=llama.config),
    ):
        with pytest.raises(CaptureError, match=r"is empty|holds 1 × 0 tokens"):
            capture_cache(llama, empty, CONTEXT)
    pairs: Any = tuple((at.keys, at.values) for at in live_cache(llama, CONTEXT).layers)
    with pytest.raises(UnsupportedModelError, match="the cache is a tuple"):
        capture_cache(llama, pairs, CONTEXT)
    with pytest.raises(CaptureError, match="layer 0 of the cache is empty"):
        capture_cache(llama, DynamicCache(config=llama.config), CONTEXT)


def test_layer_kinds_that_a_card_cannot_carry() -> None:
    config = Lfm2Config(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        layer_types=["conv", "conv"],
    )
    model = AutoModelForCausalLM.from_config(config).eval()
    with pytest.raises(UnsupportedModelError, match="does not read tokens into its own cache"):
        capture(model, None, CONTEXT)


def test_a_cache_that_the_model_cannot_use() -> None:
    model = tiny_model("gemma3")
    model.config.layer_types = ["full_attention", "chunked_attention", "full_attention"]
    with pytest.raises(UnsupportedModelError, match="transformers makes no cache for Gemma3For"):
        capture(model, None, CONTEXT)
    model.config.layer_types = ["full_attention"] * 3
    model.config.kv_sharing_modes = [None, None, "reuse"]
    with pytest.raises(UnsupportedModelError, match="does not read tokens into its own cache"):
        capture(model, None, CONTEXT)


def test_a_model_that_looks_ahead() -> None:
    """What it has read of a text changes when more of it comes, so nothing can be kept."""
    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        initializer_range=0.6,
    )
    model = AutoModelForCausalLM.from_config(config).eval()
    with pytest.raises(UnsupportedModelError, match="something else when a text is"):
        capture(model, None, CONTEXT)


def test_model_in_double_precision(llama: Any) -> None:
    with pytest.raises(UnsupportedModelError, match="the model is in float64; a card carries"):
        capture(copy.deepcopy(llama).double(), None, CONTEXT)


def test_rope_of_an_unknown_type(llama: Any) -> None:
    model = copy.deepcopy(llama)
    model.config.rope_parameters = {"rope_type": "spiral", "rope_theta": 1e4}
    with pytest.raises(UnsupportedModelError, match="RoPE type 'spiral'"):
        capture(model, None, CONTEXT)


def test_refusals_come_before_the_model_is_touched(llama: Any) -> None:
    card = capture(llama, None, CONTEXT)
    other = tiny_model(seed=1)
    calls = []
    other.register_forward_pre_hook(lambda *_: calls.append(1))
    with pytest.raises(IdentityError):
        card.inputs(other, new=NEW)
    assert not calls


@pytest.mark.parametrize("ttl", [float("nan"), float("inf"), 1e300])
def test_times_that_are_none(llama: Any, ttl: float) -> None:
    with pytest.raises(CaptureError, match="ttl="):
        capture(llama, None, CONTEXT, ttl=ttl)
