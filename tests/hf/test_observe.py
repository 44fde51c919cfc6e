"""What a model keeps is found by letting it read a few tokens; nothing is assumed of its class."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    Cache,
    DeepseekV3Config,
    FalconConfig,
    GPT2Config,
    GPTJConfig,
    PhiConfig,
)

import qkvshare
from qkvshare.card.errors import IdentityError, UnsupportedModelError
from qkvshare.hf.cache.observe import observe, require_geometry

from ..conftest import VOCABULARY, greedy, greedy_from_text, some_ids, tiny_model

CONTEXT, NEW = some_ids(40), some_ids(5, seed=1)
_SIZES = {"n_embd": 32, "n_layer": 3, "n_head": 4, "vocab_size": VOCABULARY}
_ENDS = {"bos_token_id": 1, "eos_token_id": None, "pad_token_id": 0, "initializer_range": 0.6}
_WIDE = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 64,
}

# Each with whether the positions stay in its keys.
MODELS: dict[str, tuple[Any, bool]] = {
    "learned positions": (GPT2Config(**_SIZES, **_ENDS, n_positions=128), True),
    "rotated by a function of its own": (GPTJConfig(**_SIZES, **_ENDS, rotary_dim=4), True),
    "alibi": (BloomConfig(hidden_size=32, **_SIZES, **_ENDS), False),
    "no list of layers": (FalconConfig(**_WIDE, **_ENDS, vocab_size=VOCABULARY), False),
    "a part of each head rotated": (PhiConfig(**_WIDE, **_ENDS, vocab_size=VOCABULARY), False),
    "latent attention": (
        DeepseekV3Config(
            **_WIDE, **_ENDS, vocab_size=VOCABULARY, moe_intermediate_size=16, n_routed_experts=4,
            num_experts_per_tok=2, n_group=1, topk_group=1, kv_lora_rank=16, q_lora_rank=24,
            qk_rope_head_dim=8, qk_nope_head_dim=16, v_head_dim=12, num_key_value_heads=4,
        ),
        True,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_any_positions_and_any_layout(name: str) -> None:
    config, placed = MODELS[name]
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(config).eval()
    assert {layer.placed for layer in observe(model).layers} == {placed}
    expected = greedy_from_text(model, CONTEXT + NEW)
    card = qkvshare.capture(model, None, CONTEXT, codec=qkvshare.Raw())
    assert [layer.placed for layer in card.manifest.layers] == [placed] * 3
    assert greedy(model, **card.inputs(model, new=NEW)) == expected
    wrong = qkvshare.capture(model, None, some_ids(40, seed=2), codec=qkvshare.Raw())
    assert greedy(model, **wrong.inputs(model, new=NEW)) != expected
    qkvshare.capture(model, None, CONTEXT)  # the default codec takes these keys, too


def test_a_model_is_looked_at_once() -> None:
    model, calls = tiny_model("llama"), list[int]()
    model.register_forward_pre_hook(lambda *_: calls.append(1))
    first = observe(model)
    looked = len(calls)
    with qkvshare.attention(model):
        assert observe(model) is first
    assert len(calls) == looked > 0
    model.config.max_position_embeddings += 1
    assert observe(model) is not first


def test_a_model_that_keeps_more_than_its_cache_shows() -> None:
    """As an architecture of tomorrow may; a card would lose it without a word."""

    def remember(_module: Any, _arguments: Any, named: Any, out: Any) -> Any:
        cache = next(at for at in named.values() if isinstance(at, Cache))  # of any name
        cache.more = getattr(cache, "more", 0) + out.sum(1, keepdim=True)
        return out + cache.more

    model = tiny_model("llama")
    model.model.layers[1].register_forward_hook(remember, with_kwargs=True)
    with pytest.raises(UnsupportedModelError, match=r"layer 2 of .* is the first to compute"):
        observe(model)


def test_positions_that_a_card_claims_for_its_keys_must_be_the_models() -> None:
    """Otherwise keys would be rotated twice, or not at all."""
    from msgspec.structs import replace

    model = tiny_model("llama")
    layers = observe(model).layers
    require_geometry(model, layers, [])
    forged = [replace(layer, placed=True) for layer in layers]
    with pytest.raises(IdentityError, match="whether keys have their positions"):
        require_geometry(model, forged, [])


def test_a_compiled_model_is_looked_at_without_compiling() -> None:
    model, compiled = tiny_model("llama"), list[int]()

    def backend(graph: Any, _: Any) -> Any:
        compiled.append(1)
        return graph.forward

    model.compile(backend=backend)
    assert observe(model).provable
    assert not compiled
    model(torch.tensor([CONTEXT]))
    assert compiled
