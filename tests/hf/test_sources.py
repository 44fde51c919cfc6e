"""Static and quantized caches as sources of a card."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import QuantizedCache, StaticCache, cache_utils

from qkvshare import CaptureError, Raw, capture_cache

from ..conftest import greedy, greedy_from_text, some_ids, tiny_model
from ..models.tiny import tiny_model as any_model

IDS, NEW = some_ids(40), some_ids(5, seed=1)


def read_into(model: Any, cache: Any, ids: Any = IDS) -> Any:
    with torch.no_grad():
        model(input_ids=torch.tensor(ids).view(-1, 40), past_key_values=cache, use_cache=True)
    return cache


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma3", "phi3"])
def test_a_static_cache(family: str) -> None:
    model = tiny_model(family)
    cache = read_into(model, StaticCache(config=model.config, max_cache_len=64))
    before = cache.layers[0].keys.clone()
    card = capture_cache(model, cache, IDS, codec=Raw())
    assert greedy(model, **card.inputs(model, new=NEW)) == greedy_from_text(model, IDS + NEW)
    assert torch.equal(cache.layers[0].keys, before)
    if family in ("llama", "phi3"):
        with pytest.raises(CaptureError, match=r"not made of these"):
            capture_cache(model, cache, IDS[::-1], codec=Raw())
    with pytest.raises(CaptureError, match=r"the ids are"):
        capture_cache(model, cache, IDS[:-1], codec=Raw())


def test_a_static_cache_that_generate_made() -> None:
    model = tiny_model("llama")
    rows = torch.tensor([IDS])
    out = model.generate(
        input_ids=rows,
        attention_mask=torch.ones_like(rows),
        max_new_tokens=6,
        do_sample=False,
        cache_implementation="static",
        disable_compile=True,
        return_dict_in_generate=True,
    )
    said = out.sequences[0, :-1].tolist()
    card = capture_cache(model, out.past_key_values, said, codec=Raw())
    assert greedy(model, **card.inputs(model, new=NEW)) == greedy_from_text(model, said + NEW)


def test_a_row_of_a_static_batch() -> None:
    model = tiny_model("llama")
    batch = [some_ids(40, seed=2), IDS]
    cache = read_into(model, StaticCache(config=model.config, max_cache_len=64), batch)
    card = capture_cache(model, cache, torch.tensor(batch), row=1, codec=Raw())
    assert card.token_ids.tolist() == IDS
    assert greedy(model, **card.inputs(model, new=NEW)) == greedy_from_text(model, IDS + NEW)


def test_a_static_cache_of_a_model_with_states() -> None:
    model = any_model("qwen3_5_text")
    cache = read_into(model, StaticCache(config=model.config, max_cache_len=64))
    card = capture_cache(model, cache, IDS, codec=Raw())
    assert greedy(model, **card.inputs(model, new=NEW)) == greedy_from_text(model, IDS + NEW)


@pytest.mark.skipif(
    not hasattr(cache_utils, "Fp8QuantizedLayer"), reason="older than transformers 5.23"
)
def test_a_quantized_cache_is_read_again() -> None:
    """Its keys are rounded, so they prove nothing, and a card of the text is the better one."""
    model = tiny_model("llama")
    cache = read_into(model, QuantizedCache(backend="fp8", config=model.config))
    card = capture_cache(model, cache, IDS, codec=Raw())
    assert greedy(model, **card.inputs(model, new=NEW)) == greedy_from_text(model, IDS + NEW)
    with pytest.raises(CaptureError, match=r"the ids are"):
        capture_cache(model, cache, IDS[:-1], codec=Raw())
