"""Models whose layers keep the keys of an indexer, and where it needs them positions."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from msgspec.structs import replace
from transformers import DynamicCache
from transformers.cache_utils import DynamicIndexedLayer, DynamicLayer

from qkvshare import (
    CacheCard,
    IdentityError,
    Packed,
    Raw,
    UnsupportedModelError,
    capture,
    capture_cache,
    load_cache,
    save_cache,
)
from qkvshare.card.errors import PromptError
from qkvshare.hf.cache.indexer import beside, of_same_shape
from qkvshare.hf.cache.layers import attention_numbers
from qkvshare.hf.cache.observe import observe, require_geometry
from tests.models.tiny import greedy, some_ids, tiny_model

# A layer of transformers; one with positions, among states; and a class that the model adds.
NAMES = ["deepseek_v32", "qwen4_exp_text", "minimax_m3_vl_text"]
NEW = 5


@cache
def tiny(name: str) -> Any:
    return tiny_model(name)


@pytest.fixture(params=NAMES)
def model(request: pytest.FixtureRequest) -> Any:
    try:
        observe(found := tiny(request.param))
    except UnsupportedModelError as error:  # transformers 5.18 keeps the positions elsewhere
        pytest.skip(str(error))
    return found


@pytest.fixture
def ids(model: Any) -> list[int]:
    return some_ids(model, 72, seed=1)


@pytest.fixture
def new(model: Any) -> list[int]:
    return some_ids(model, NEW, seed=3)


def from_text(model: Any, ids: list[int], **how: Any) -> list[int]:
    rows = torch.tensor([ids])
    return greedy(model, 24, input_ids=rows, attention_mask=torch.ones_like(rows), **how)[0]


def from_card(model: Any, card: CacheCard, new: list[int]) -> list[int]:
    return greedy(model, 24, **card.inputs(model, new=new))[0]


def filled(model: Any, ids: list[int]) -> DynamicCache:
    """The model's own cache of ``ids``."""
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        model(input_ids=torch.tensor([ids]), past_key_values=cache, use_cache=True)
    return cache


def test_chains_are_gone_on_from(model: Any, ids: list[int], new: list[int]) -> None:
    card = capture(model, None, ids, codec=Raw())
    assert from_card(model, card, []) == from_text(model, ids)  # an exact hit
    for seed in (4, 5):
        inputs = card.inputs(model, new=some_ids(model, 3, seed))
        out = model.generate(**inputs, max_new_tokens=4, return_dict_in_generate=True)
        card = card.extend(model, out, agent="B")
    expected = from_text(model, [*map(int, card.token_ids), *new])
    assert from_card(model, card, new) == expected
    assert from_card(model, card.compact(), new) == expected


@pytest.mark.parametrize("tokens", [1, 2])
def test_short_contexts(model: Any, tokens: int, ids: list[int], new: list[int]) -> None:
    card = capture(model, None, ids[:tokens], codec=Raw())
    assert from_card(model, card, new) == from_text(model, ids[:tokens] + new)
    assert from_card(model, card, []) == from_text(model, ids[:tokens])


@pytest.mark.parametrize("tokens", [1, 72])
def test_beams_go_on_from_one_sequence(
    model: Any, tokens: int, ids: list[int], new: list[int]
) -> None:
    card, rows = capture(model, None, ids[:tokens], codec=Raw()), torch.tensor([ids[:tokens] + new])
    how = {"max_new_tokens": 8, "num_beams": 3, "num_return_sequences": 3, "do_sample": False}
    expected = model.generate(input_ids=rows, attention_mask=torch.ones_like(rows), **how)
    assert torch.equal(model.generate(**card.inputs(model, new=new), **how), expected)


def test_live_caches_are_captured_and_saved(
    model: Any, ids: list[int], new: list[int], tmp_path: Path
) -> None:
    card = capture_cache(model, filled(model, ids), ids, codec=Raw())
    assert from_card(model, card, new) == from_text(model, ids + new)
    path = save_cache(filled(model, ids), ids, tmp_path / "cache", model)
    loaded, _ = load_cache(path, model)
    assert from_text(model, ids + new, past_key_values=loaded) == from_text(model, ids + new)


def test_a_card_makes_the_models_own_cache(model: Any, ids: list[int]) -> None:
    """Tensor by tensor, with the positions that no card has."""
    inputs = capture(model, None, ids, codec=Raw()).inputs(model, new=[5])
    given, kept = inputs["past_key_values"], inputs["past_key_values"].get_seq_length()
    own, seen = filled(model, ids[:kept]), 0
    for layer, expected in zip(given.layers, own.layers, strict=True):
        for name, value in vars(expected).items():
            if torch.is_tensor(value):
                assert torch.allclose(getattr(layer, name), value, atol=1e-5), name
                seen += name not in ("keys", "values")
    assert seen


def test_a_card_of_other_indexers_is_refused(model: Any) -> None:
    own = observe(model)
    (at, *_) = (n for n, layer in enumerate(own.layers) if layer.kind == "indexer")
    wider = replace(own.layers[at], head_dim=2 * own.layers[at].head_dim)
    without = [layer for layer in own.layers if layer.kind != "indexer"]
    for layers in (without, [*own.layers[:at], wider, *own.layers[at + 1 :]]):
        with pytest.raises(IdentityError):
            require_geometry(model, layers, own.states)


def test_a_refused_read_spoils_the_cache(model: Any, ids: list[int], new: list[int]) -> None:
    cache = capture(model, None, ids, codec=Raw()).inputs(model, new=new)["past_key_values"]
    for message in ("tokens are read after", "refused before"):
        with pytest.raises(PromptError, match=message):
            model(input_ids=torch.tensor([ids + new]), past_key_values=cache, use_cache=True)


@pytest.mark.filterwarnings("ignore:all .* count alike")
@pytest.mark.parametrize("kv_format", ["bfloat16", "codes"])
def test_formats_that_leave_the_indexer_out(model: Any, kv_format: Any) -> None:
    card = capture(model, None, some_ids(model, 20, seed=1), codec=Packed())
    with pytest.raises(UnsupportedModelError, match=r"beside keys and values"):
        card.inputs(model, new=[5], kv_format=kv_format)


def test_positions_of_pictures_are_refused() -> None:
    layer = DynamicIndexedLayer()
    if not hasattr(layer, "indexer_position_ids"):
        pytest.skip("this transformers keeps none there")
    layer.update_indexer(torch.zeros(1, 4, 8))
    layer.indexer_position_ids = torch.arange(4).expand(3, 1, 4).clone()
    empty = of_same_shape(DynamicCache(), DynamicCache())
    empty.layers, read = [DynamicIndexedLayer()], DynamicCache()
    read.layers = [layer]
    assert of_same_shape(empty, read).layers[0].indexer_position_ids.shape == (3, 1, 0)
    layer.indexer_position_ids[1, 0, 2] = 7
    with pytest.raises(UnsupportedModelError, match=r"positions"):
        of_same_shape(empty, read)


class _TwoThings(DynamicLayer):
    def __init__(self) -> None:
        super().__init__()
        self.index = self.more = None


class _ANumber(DynamicLayer):
    def __init__(self) -> None:
        super().__init__()
        self.count = 0


class _OtherKeys(DynamicLayer):
    def __init__(self) -> None:
        super().__init__()
        self.index = None

    def update(self, *arguments: Any, **named: Any) -> Any:
        return super().update(*arguments, **named)


@pytest.mark.parametrize("kind", [_TwoThings, _ANumber, _OtherKeys])
def test_other_classes_of_layers_are_refused(kind: type[DynamicLayer]) -> None:
    assert beside(kind()) is None
    cache = DynamicCache()
    cache.layers = [kind()]
    with pytest.raises(UnsupportedModelError, match=kind.__name__):
        attention_numbers(cache)
