"""A model whose layers keep one compressed entry for each window of tokens."""

from __future__ import annotations

import copy
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from msgspec.structs import replace
from transformers import DynamicCache

from qkvshare import CacheCard, IdentityError, Packed, Raw, UnsupportedModelError, capture
from qkvshare.hf.cache import states as states_module
from qkvshare.hf.cache.compressed import compresses
from qkvshare.hf.cache.growing import SlidingLayer
from qkvshare.hf.cache.layers import empty_cache
from qkvshare.hf.cache.observe import observe, require_geometry
from tests.models.tiny import CHUNK, WINDOW, greedy, some_ids, tiny_model

HEAVY, SPARSE = "heavily_compressed_attention", "compressed_sparse_attention"
KINDS = {
    "as it is": None,
    "entries from the first layer on": [SPARSE, HEAVY, SPARSE, HEAVY],
    "long windows alone": [HEAVY] * 4,
}


@cache
def tiny(kind: str = "as it is", window: int = CHUNK) -> Any:
    made = tiny_model("deepseek_v4")
    config = copy.deepcopy(made.config)
    config.layer_types = KINDS[kind] or config.layer_types
    config.compress_rates = {SPARSE: 4, HEAVY: window}
    config.index_topk = 6  # fewer than there are
    torch.manual_seed(0)
    model = type(made)(config).eval()
    for name, weights in model.named_parameters():
        if weights.dim() > 1 and "norm" not in name:
            weights.data.normal_(std=2 / weights.shape[-1] ** 0.5)
    return model


def from_text(model: Any, ids: list[int]) -> list[int]:
    rows = torch.tensor([ids])
    return greedy(model, 24, input_ids=rows, attention_mask=torch.ones_like(rows))[0]


def from_card(model: Any, card: CacheCard, new: list[int]) -> list[int]:
    return greedy(model, 24, **card.inputs(model, new=new))[0]


@pytest.mark.parametrize("tokens", [1, 2, 5, CHUNK, CHUNK + 1, WINDOW, WINDOW + 1, 64, 65, 75])
@pytest.mark.parametrize("kind", KINDS)
def test_wherever_a_context_ends(kind: str, tokens: int, tmp_path: Path) -> None:
    model = tiny(kind)
    ids, new = some_ids(model, tokens, seed=1), some_ids(model, 5, seed=3)
    card = CacheCard.load(capture(model, None, ids, codec=Raw()).save(tmp_path / "card"))
    card.verify()
    assert from_card(model, card, new) == from_text(model, ids + new)
    assert from_card(model, card, []) == from_text(model, ids)


def test_windows_that_are_longer_than_a_look_of_other_models() -> None:
    model = tiny("as it is", 128)
    for tokens in (100, 128, 129, 300):
        ids, new = some_ids(model, tokens, seed=1), some_ids(model, 5, seed=3)
        card = capture(model, None, ids, codec=Raw())
        assert from_card(model, card, new) == from_text(model, ids + new)


def test_each_segment_has_the_entries_of_all_tokens_before_it() -> None:
    model, ends = tiny(), [15, 16, 17, 30, 72]
    ids, new = some_ids(model, 72, seed=1), some_ids(model, 5, seed=3)
    card = capture(model, None, ids, codec=Raw(), checkpoints=ends)
    for end in ends:
        head = card.head(end)
        assert from_card(model, head, new) == from_text(model, ids[:end] + new)
        states = head.manifest.snapshot(head.manifest.segments[-1])
        found = {(at.kind, at.shape[0]) for at in states if at.layer == 2}
        assert found == {("compressed", (end - 1) // CHUNK), ("open", (end - 1) % CHUNK)}
    compact = card.compact()
    assert compact.state_bytes == card.state_blob(len(ends) - 1).nbytes
    assert from_card(model, compact, new) == from_text(model, ids + new)


def test_entries_are_rounded_and_the_rest_is_not() -> None:
    model = tiny()
    ids = some_ids(model, 72, seed=1)
    for bits, numbers in ((32, 4.0), (8, 1.0), (4, 0.5)):
        card = capture(model, None, ids, codec=Packed(), state_bits=bits)
        segment = card.manifest.segments[0]
        for at in card.manifest.snapshot(segment):
            rounded = at.kind == "compressed" and bits < 32
            expected = numbers * at.numbers + 2 * at.rows if rounded else 4 * at.numbers
            assert at.nbytes(segment.state_bits) == expected
        assert len(from_card(model, card, some_ids(model, 5, seed=3))) == 24


def test_caches_of_others_stay_as_they_are() -> None:
    model = tiny()
    kinds = [type(layer) for layer in DynamicCache(config=model.config).layers]
    card = capture(model, None, some_ids(model, 40, seed=1), codec=Raw())
    assert any(isinstance(at, SlidingLayer) for at in card.inputs(model)["past_key_values"].layers)
    assert [type(layer) for layer in DynamicCache(config=model.config).layers] == kinds


def test_a_cache_is_copied_with_its_entries() -> None:
    model = tiny()
    ids, new = some_ids(model, 40, seed=1), some_ids(model, 5, seed=3)
    first = capture(model, None, ids, codec=Raw()).inputs(model, new=new, new_only=True)
    cache = first["past_key_values"]
    other = copy.copy(cache.layers[1])
    before = [other.compressed_kv["compressor"], other.keys.clone()]
    with torch.no_grad():
        model(**first)
    assert other.compressed_kv["compressor"] is before[0]
    assert torch.equal(other.keys, before[1])


def test_layers_that_keep_anything_else_are_refused() -> None:
    layer: Any = empty_cache(tiny()).layers[1]
    assert compresses(layer)
    for name, value in (("more_kv", {"compressor": None}), ("compress_rate", 1)):
        other = copy.deepcopy(layer)
        setattr(other, name, value)
        assert not compresses(other)
    for name in ("compress_rate", "entry_count", "buffer_gate"):
        other = copy.deepcopy(layer)
        delattr(other, name)
        assert not compresses(other)


@pytest.mark.parametrize("lost", ["compressed", "open", "overlap"])
def test_a_look_notices_what_is_lost(lost: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other numbers are there, as if a card did not carry them."""
    put = states_module.put

    def wrong(layer: Any, kind: str, index: int, tensor: torch.Tensor, seq_len: int) -> None:
        put(layer, kind, index, -tensor if kind == lost else tensor, seq_len)

    monkeypatch.setattr(states_module, "put", wrong)
    with pytest.raises(UnsupportedModelError, match=r"behind a copy of the cache"):
        observe(copy.deepcopy(tiny()))


def test_a_card_of_other_windows_is_refused() -> None:
    model = tiny()
    card = capture(model, None, some_ids(model, 40, seed=1), codec=Raw())
    layers, states = card.manifest.layers, card.manifest.states
    require_geometry(model, layers, states)
    other = [replace(at, every=at.every and 2 * at.every) for at in states]
    with pytest.raises(IdentityError, match=r"states"):
        require_geometry(model, layers, other)
    with pytest.raises(IdentityError):
        card.inputs(tiny("as it is", 128))
