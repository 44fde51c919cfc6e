"""A cache in bfloat16 is the card's cache, rounded, in half the memory."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from benchmarks.codecs import Kivi, Uniform
from qkvshare import capture, capture_cache
from qkvshare.card.errors import CodecError, PromptError, UnsupportedModelError
from qkvshare.codecs import Packed, Raw
from qkvshare.hf.attention import NAME
from qkvshare.hf.cache import growing
from qkvshare.hf.cache.growing import FullLayer, HalfLayer
from qkvshare.hf.cache.layers import attention_layers
from qkvshare.kernels import attention
from qkvshare.kernels.native import native

from ..conftest import FAMILIES, some_ids, tiny_model
from .test_generate import MODES, generated, step

CONTEXT, NEW = some_ids(60), some_ids(7, seed=1)
WIDE = {"head_dim": 64, "hidden_size": 256}


class Rounding(FullLayer):  # type: ignore[no-untyped-call]
    """Float32, but no number that bfloat16 has not."""

    def update(self, keys: Any, values: Any, *args: Any, **kwargs: Any) -> Any:
        """As in `HalfLayer`."""
        return super().update(keys.bfloat16().float(), values.bfloat16().float(), *args, **kwargs)


def rounded(arguments: dict[str, Any]) -> dict[str, Any]:
    """What `inject` gave, every full layer `Rounding`."""
    cache = arguments["past_key_values"]
    for number, layer in enumerate(cache.layers):
        if type(layer) is FullLayer:
            cache.layers[number] = Rounding()
            cache.layers[number].update(layer.keys, layer.values)
    return arguments


@pytest.mark.parametrize("codec", [Uniform(4), Kivi(4), Packed()], ids=lambda at: at.name)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_numbers_of_the_card_rounded(family: str, codec: Any) -> None:
    model = tiny_model(family)
    card = capture(model, None, CONTEXT, codec=codec)
    caches = [
        card.inputs(model, new=NEW, kv_format=at, new_only=True)["past_key_values"]
        for at in ("model", "bfloat16")
    ]
    for one, two in zip(*(attention_layers(cache) for cache in caches), strict=True):
        if isinstance(two, HalfLayer):
            assert two.keys.dtype == two.values.dtype == torch.bfloat16
            # Keys that are turned after they were rounded are rounded twice.
            torch.testing.assert_close(two.keys.float(), one.keys, atol=1e-3, rtol=2**-7)
            assert torch.equal(two.values, one.values.to(torch.bfloat16))
        else:
            assert torch.equal(two.keys, one.keys)
            assert torch.equal(two.values, one.values)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_way_to_generate(family: str, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(growing, "STEP", 3)  # moved again and again
    model = tiny_model(family)
    card = capture(model, None, CONTEXT)
    found, expected = (
        generated(model, len(CONTEXT + NEW), MODES[mode], **given)
        for given in (
            card.inputs(model, new=NEW, kv_format="bfloat16"),
            rounded(card.inputs(model, new=NEW)),
        )
    )
    assert found == expected


@pytest.mark.skipif(native is None, reason="there are no native kernels here")
@pytest.mark.parametrize("new", [NEW, NEW[:1], [], some_ids(64, seed=2)], ids=len)
@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3", "phi3"])
def test_attention_reads_them_as_they_are(
    family: str, new: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """But for as many queries as go to ``sdpa``."""
    model = tiny_model(family, **WIDE)
    card = capture(model, None, CONTEXT)
    model.set_attn_implementation(NAME)
    seen = []

    def attend(query: Any, key: Any, *rest: Any) -> Any:
        seen.append(key.dtype)
        return attention.attend(query, key, *rest)

    monkeypatch.setattr("qkvshare.hf.attention.attend", attend)
    with torch.no_grad():
        found = model(**card.inputs(model, new=new, kv_format="bfloat16", new_only=True)).logits
        halves = seen.count(torch.bfloat16)
        model.set_attn_implementation("sdpa")
        expected = model(**rounded(card.inputs(model, new=new, new_only=True))).logits
    torch.testing.assert_close(found, expected, atol=2e-2, rtol=2e-2)
    assert (halves > 0) == (len(new) < 64)


def test_the_attention_function_may_change(llama: Any) -> None:
    """In a copy of a cache too, and for what comes after."""
    card = capture(llama, None, CONTEXT)
    cache = card.inputs(llama, new=NEW, kv_format="bfloat16", new_only=True)["past_key_values"]
    other = copy.deepcopy(cache)
    one = [step(llama, cache, NEW[:2]), step(llama, cache, NEW[2:4])]
    before = llama.config._attn_implementation
    llama.set_attn_implementation(NAME)
    try:
        two = [step(llama, other, NEW[:2])]
        assert other.layers[0].update(*torch.zeros(2, 1, 2, 1, 8))[0].dtype == torch.bfloat16
        other.layers[0].crop(-1)
        two.append(step(llama, other, NEW[2:4]))
    finally:
        llama.set_attn_implementation(before)
    torch.testing.assert_close(one, two, atol=2e-2, rtol=2e-2)


def test_it_is_handed_on(llama: Any) -> None:
    """The card's bytes stay, and what came since is captured as it was kept."""
    card = capture(llama, None, CONTEXT)
    given = card.inputs(llama, new=NEW, kv_format="bfloat16", new_only=True)
    with torch.no_grad():
        llama(**given)
    longer = capture_cache(llama, given["past_key_values"], CONTEXT + NEW, codec=Raw())
    assert longer.manifest.segments[0] == card.manifest.segments[0]
    found = longer.inputs(llama, new=NEW, new_only=True)["past_key_values"]
    for one, two in zip(found.layers, given["past_key_values"].layers, strict=True):
        assert one.keys.dtype == torch.float32
        kept = slice(len(CONTEXT), len(CONTEXT) + len(NEW))
        assert torch.equal(one.keys[:, :, kept], two.keys[:, :, kept].float())
        assert torch.equal(one.values[:, :, kept], two.values[:, :, kept].float())


@pytest.mark.parametrize("one_format", ["model", "bfloat16"])
def test_a_held_cache_of_another_format_is_not_copied(llama: Any, one_format: Any) -> None:
    card = capture(llama, None, CONTEXT)
    held = card.inputs(llama, new=NEW, kv_format=one_format, new_only=True)
    with torch.no_grad():
        llama(**held)
    longer = capture_cache(llama, held["past_key_values"], CONTEXT + NEW)
    for other in ("model", "bfloat16"):
        alone = longer.inputs(llama, new=NEW, kv_format=other, new_only=True)["past_key_values"]
        given = longer.inputs(
            llama,
            new=NEW,
            kv_format=other,
            cached=held["past_key_values"],
            new_only=True,
        )
        for one, two in zip(alone.layers, given["past_key_values"].layers, strict=True):
            assert torch.equal(one.keys, two.keys)
            assert torch.equal(one.values, two.values)


def test_a_reset_cache_is_an_empty_one(llama: Any) -> None:
    card = capture(llama, None, CONTEXT)
    cache = card.inputs(llama, new=NEW, kv_format="bfloat16", new_only=True)["past_key_values"]
    cache.reset()
    assert cache.get_seq_length() == 0
    step(llama, cache, CONTEXT)
    assert cache.get_seq_length() == len(CONTEXT)
    assert cache.layers[0].keys.dtype == torch.bfloat16


def test_refused(llama: Any) -> None:
    card, exact = (capture(llama, None, CONTEXT, codec=at) for at in (Packed(), Raw()))
    with pytest.raises(CodecError, match="'raw' keeps every bit"):
        exact.inputs(llama, new=NEW, kv_format="bfloat16", new_only=True)
    with pytest.raises(PromptError, match="kv_format is 'int4'; expected one of model, bfloat16"):
        card.inputs(llama, new=NEW, kv_format="int4", new_only=True)
    small = tiny_model(dtype=torch.bfloat16)
    with pytest.raises(UnsupportedModelError, match="is for models in torch.float32"):
        capture(small, None, CONTEXT).inputs(small, new=NEW, kv_format="bfloat16", new_only=True)
