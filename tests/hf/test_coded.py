"""A cache that keeps a card's codes is the card's cache, in less memory.

What `generate` does with it is in `test_generate`.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from benchmarks.codecs import Kivi, Uniform
from qkvshare import CacheCard, capture, capture_cache
from qkvshare.card.errors import (
    CaptureError,
    CardDigestError,
    CodecError,
    UnsupportedModelError,
)
from qkvshare.codecs import LayerKV, Packed, Raw, Transform
from qkvshare.hf.attention import NAME
from qkvshare.hf.cache.coded import CodedLayer, CodedRun, Scratch
from qkvshare.hf.cache.layers import attention_layers
from qkvshare.kernels.native import native

from ..conftest import FAMILIES, greedy, some_ids, tiny_model

CONTEXT, NEW = some_ids(60), some_ids(7, seed=1)


def logits(model: Any, arguments: dict[str, Any]) -> torch.Tensor:
    with torch.no_grad():
        return model(**arguments).logits  # type: ignore[no-any-return]


@pytest.mark.parametrize("codec", [Raw(), Uniform(4), Kivi(4), Packed()], ids=lambda at: at.name)
@pytest.mark.parametrize("family", FAMILIES)
def test_same_numbers(family: str, codec: Any) -> None:
    model = tiny_model(family)
    card = capture(model, None, CONTEXT, codec=codec)
    numbers, codes = (
        card.inputs(model, new=NEW, new_only=True),
        card.inputs(model, new=NEW, kv_format="codes", new_only=True),
    )
    for one, two in zip(
        *(attention_layers(at["past_key_values"]) for at in (numbers, codes)), strict=True
    ):
        assert torch.equal(one.keys, two.keys)
        assert torch.equal(one.values, two.values)
    assert torch.equal(logits(model, numbers), logits(model, codes))


def test_chains_and_exact_hits(llama: Any) -> None:
    """Several segments, a compacted one, and a last token that is read again."""
    card = capture(llama, None, CONTEXT)
    given = card.inputs(llama, new=NEW, kv_format="codes", new_only=True)
    logits(llama, given)
    longer = capture_cache(llama, given["past_key_values"], CONTEXT + NEW)
    assert len(longer.manifest.segments) == 2
    plain = card.inputs(llama, new=NEW, new_only=True)
    logits(llama, plain)
    same = capture_cache(llama, plain["past_key_values"], CONTEXT + NEW)
    assert same.manifest.segments == longer.manifest.segments
    for made in (longer, longer.compact()):
        for new in (NEW, []):
            one, two = (
                made.inputs(llama, new=new, new_only=True),
                made.inputs(llama, new=new, kv_format="codes", new_only=True),
            )
            assert torch.equal(logits(llama, one), logits(llama, two))


def test_it_holds_no_numbers_of_the_card() -> None:
    """Beside the bytes of the card one layer, however many there are."""
    model = tiny_model(num_hidden_layers=6)
    cache = capture(model, None, CONTEXT).inputs(model, new=NEW, kv_format="codes", new_only=True)[
        "past_key_values"
    ]
    assert all(isinstance(layer, CodedLayer) for layer in cache.layers)
    assert all(layer.keys.numel() == 0 for layer in cache.layers)
    logits(model, {"input_ids": torch.tensor([NEW]), "past_key_values": cache})
    assert len({id(layer.scratch) for layer in cache.layers}) == 1


def test_refused(llama: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    card = capture(llama, None, CONTEXT)
    segment = card.manifest.segments[0]
    name = sorted(name for name in card.tensors if name.startswith("kv"))[-1]
    wrong = card.tensors[name].copy()
    wrong[-1] ^= 1
    damaged = CacheCard(card.manifest, {**card.tensors, name: wrong})
    with pytest.raises(CardDigestError):
        damaged.inputs(llama, new=NEW, kv_format="codes", new_only=True)
    monkeypatch.setattr(Packed, "independent", Transform.independent)
    with pytest.raises(CodecError, match=f"codes of '{segment.codec.name}' cannot stay codes"):
        card.inputs(llama, new=NEW, kv_format="codes", new_only=True)


def test_as_a_held_cache_it_is_decoded_again(llama: Any) -> None:
    card = capture(llama, None, CONTEXT)
    held = card.inputs(llama, new=NEW, kv_format="codes", new_only=True)
    logits(llama, held)
    longer = capture_cache(llama, held["past_key_values"], CONTEXT + NEW)
    one = longer.inputs(llama, new=NEW, cached=held["past_key_values"], new_only=True)
    assert torch.equal(
        logits(llama, one), logits(llama, longer.inputs(llama, new=NEW, new_only=True))
    )


def test_layers_of_different_heads_share_one_scratch() -> None:
    scratch = Scratch(torch.float32, torch.device("cpu"))
    for number, dim in enumerate((16, 16, 8)):
        state = LayerKV(torch.randn(2, 5, dim), torch.randn(2, 5, 16))
        (blob,) = Raw().encode([state])
        layer = CodedLayer(number, [CodedRun(Raw(), blob, 0, state.shape, None)], 5, scratch)
        keys, values = layer.numbers()
        assert torch.equal(keys[0], state.keys)
        assert torch.equal(values[0], state.values)


def test_a_reset_cache_is_an_empty_one(llama: Any) -> None:
    cache = capture(llama, None, CONTEXT).inputs(llama, new=NEW, kv_format="codes", new_only=True)[
        "past_key_values"
    ]
    cache.reset()
    cache.crop(-3)
    assert cache.get_seq_length() == 0
    with pytest.raises(CaptureError, match="layer 0 of the cache is empty"):
        capture_cache(llama, cache, CONTEXT)
    ids = torch.tensor([CONTEXT])
    found = logits(llama, {"input_ids": ids, "past_key_values": cache})
    assert torch.equal(found, logits(llama, {"input_ids": ids}))
    assert attention_layers(cache)[0].keys.shape[2] == len(CONTEXT)


@pytest.mark.skipif(native is None, reason="there are no native kernels here")
@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3", "phi3"])
def test_attention_reads_codes_as_they_are(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is decoded to memory, for many tokens at once, for beams, or after a crop; but for
    as many queries as go to ``sdpa``."""
    model = tiny_model(family, head_dim=64, hidden_size=256)
    model.set_attn_implementation(NAME)
    card = capture(model, None, CONTEXT)
    expected = [
        logits(model, card.inputs(model, new=new, new_only=True))
        for new in (NEW, NEW[:1], [], some_ids(64, seed=2))
    ]
    beams = greedy(model, **card.inputs(model, new=NEW), num_beams=3)
    decoded = []

    def numbers(layer: CodedLayer) -> Any:
        decoded.append(layer)
        return original(layer)

    original = CodedLayer.numbers
    monkeypatch.setattr(CodedLayer, "numbers", numbers)
    for new, right in zip((NEW, NEW[:1], []), expected, strict=False):
        found = logits(model, card.inputs(model, new=new, kv_format="codes", new_only=True))
        torch.testing.assert_close(found, right, atol=1e-4, rtol=1e-4)
    assert greedy(model, **card.inputs(model, new=NEW, kv_format="codes"), num_beams=3) == beams
    assert not decoded
    given = card.inputs(model, new=some_ids(64, seed=2), kv_format="codes", new_only=True)
    torch.testing.assert_close(logits(model, given), expected[3], atol=1e-4, rtol=1e-4)
    assert decoded
    model.set_attn_implementation("sdpa")
    before = len(decoded)
    torch.testing.assert_close(
        logits(model, card.inputs(model, new=NEW, kv_format="codes", new_only=True)),
        expected[0],
        atol=1e-4,
        rtol=1e-4,
    )
    assert len(decoded) > before


def test_codes_that_nobody_reads_are_not_silently_lost() -> None:
    """A model that hands attention something else than what its cache gave it."""
    model = tiny_model(head_dim=64)
    model.set_attn_implementation(NAME)
    card = capture(model, None, CONTEXT)
    cache = card.inputs(model, new=NEW, kv_format="codes", new_only=True)["past_key_values"]
    heads, dim = cache.layers[0].keys.shape[1], 64
    more = torch.randn(2, 1, heads, 1, dim)
    cache.update(*more, 0)
    with pytest.raises(UnsupportedModelError, match="did not read the codes"):
        cache.update(*more, 1)
    logits(model, card.inputs(model, new=NEW, kv_format="codes", new_only=True))
    # A forward pass that was broken off is none of that.
    given = card.inputs(model, new=NEW, kv_format="codes", new_only=True)
    given["past_key_values"].layers[1].scratch.handed = 1
    logits(model, given)
