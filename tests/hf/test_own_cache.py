"""A model that takes only a cache of its own class."""

from __future__ import annotations

import copy
import sys
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from transformers import DynamicCache

from qkvshare import CacheCard, Raw, capture, capture_cache, load_cache, save_cache
from qkvshare.card.errors import CaptureError
from qkvshare.hf.cache.card_cache import CardCache
from qkvshare.hf.cache.own import own_class
from tests.models.tiny import greedy, some_ids, tiny_model


@cache
def minimax(first: str) -> Any:
    made = tiny_model("minimax")
    config = copy.deepcopy(made.config)
    other = {"full_attention": "linear_attention", "linear_attention": "full_attention"}[first]
    config.layer_types = [first, other] * (config.num_hidden_layers // 2)
    torch.manual_seed(0)
    return type(made)(config).eval()


@pytest.fixture(params=["full_attention", "linear_attention"])
def model(request: pytest.FixtureRequest) -> Any:
    """MiniMax, and as it is published: its first layer has a state."""
    return minimax(request.param)


@pytest.fixture
def ids(model: Any) -> list[int]:
    return some_ids(model, 72, seed=1)


@pytest.fixture
def new(model: Any) -> list[int]:
    return some_ids(model, 5, seed=3)


def from_text(model: Any, ids: list[int], **how: Any) -> list[int]:
    rows = torch.tensor([ids])
    return greedy(model, 24, input_ids=rows, attention_mask=torch.ones_like(rows), **how)[0]


def from_card(model: Any, card: CacheCard, new: list[int]) -> list[int]:
    return greedy(model, 24, **card.inputs(model, new=new))[0]


def live(model: Any, ids: list[int]) -> Any:
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids]), use_cache=True).past_key_values


@pytest.mark.parametrize("tokens", [1, 2, 72])
def test_a_card_is_gone_on_from(
    model: Any, ids: list[int], new: list[int], tokens: int, tmp_path: Path
) -> None:
    ids = ids[:tokens]
    card = CacheCard.load(capture(model, None, ids, codec=Raw()).save(tmp_path / "card"))
    assert {state.kind for state in card.manifest.states} == {"recurrent"}
    assert isinstance(card.inputs(model, new=new)["past_key_values"], CardCache)
    assert from_card(model, card, new) == from_text(model, ids + new)
    assert from_card(model, card, []) == from_text(model, ids)  # an exact hit
    out = model.generate(
        **card.inputs(model, new=new), max_new_tokens=4, return_dict_in_generate=True
    )
    child = card.extend(model, out, agent="B").compact()
    expected = from_text(model, [*map(int, child.token_ids), *new])
    assert from_card(model, child, new) == expected


def test_a_live_cache_is_captured(model: Any, ids: list[int], new: list[int]) -> None:
    card = capture_cache(model, live(model, ids), ids, codec=Raw())
    assert from_card(model, card, new) == from_text(model, ids + new)


def test_a_cache_is_saved_if_it_says_how_long_it_is(ids: list[int], tmp_path: Path) -> None:
    model, other = minimax("full_attention"), minimax("linear_attention")
    path = save_cache(live(model, ids), ids, tmp_path / "cache", model)
    loaded, of = load_cache(path, model)
    assert from_text(model, [*of[0].tolist(), 5], past_key_values=loaded) == from_text(
        model, [*ids, 5]
    )
    with pytest.raises(CaptureError, match=r"says that it has none"):
        save_cache(live(other, ids), ids, tmp_path / "cache", other)


def test_beams_go_on_from_one_state(model: Any, ids: list[int], new: list[int]) -> None:
    card, rows = capture(model, None, ids, codec=Raw()), torch.tensor([ids + new])
    how = {"max_new_tokens": 8, "num_beams": 3, "num_return_sequences": 3, "do_sample": False}
    # Without a cache: that of transformers leaves the states of beams where they are.
    expected = model.generate(
        input_ids=rows, attention_mask=torch.ones_like(rows), use_cache=False, **how
    )
    assert torch.equal(model.generate(**card.inputs(model, new=new), **how), expected)


class _OneList(DynamicCache):
    def __init__(self) -> None:
        super().__init__()
        self.memory = list[Any]()


class _MoreThanAList(_OneList):
    def __init__(self) -> None:
        super().__init__()
        self.count = 0


class _Told(_OneList):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size


@pytest.mark.parametrize(
    ("kinds", "made"),
    [
        ([_OneList], True),
        ([], False),
        ([_MoreThanAList], False),
        ([_Told], False),
        ([_OneList, _MoreThanAList], False),
    ],
)
def test_only_a_class_with_one_list_is_made(
    kinds: list[Any], made: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = ModuleType("modeling_it")
    for kind in kinds:
        monkeypatch.setattr(kind, "__module__", home.__name__)
        setattr(home, kind.__name__, kind)
    monkeypatch.setitem(sys.modules, home.__name__, home)
    model: Any = type("It", (torch.nn.Module,), {"__module__": home.__name__})()
    assert issubclass(own_class(model), _OneList) == made
    assert issubclass(own_class(model, CardCache), CardCache)
