"""Every way to generate says from a raw card what plain transformers says from the text."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from transformers import DynamicCache

from qkvshare import Raw, capture
from qkvshare.hf.cache import growing
from qkvshare.hf.cache.growing import FullLayer, SlidingLayer
from qkvshare.hf.cache.layers import attention_layers

from ..conftest import FAMILIES, WINDOW, some_ids, tiny_model

CONTEXT, NEW = some_ids(40), some_ids(7, seed=1)
IDS = torch.tensor([CONTEXT + NEW])

MODES: dict[str, dict[str, Any]] = {
    "greedy": {"do_sample": False},
    "sampling": {"do_sample": True},
    "samples": {"do_sample": True, "num_return_sequences": 3},
    "beams": {"do_sample": False, "num_beams": 3},
    "best beams": {"do_sample": False, "num_beams": 4, "num_return_sequences": 2},
    "beam sampling": {"do_sample": True, "num_beams": 3},
    "prompt lookup": {"do_sample": False, "prompt_lookup_num_tokens": 3},
}


@pytest.fixture(params=[growing.STEP, 3], ids=["step", "small step"])
def growth(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """The usual step, and one that is used up again and again."""
    monkeypatch.setattr(growing, "STEP", request.param)
    return int(request.param)


@pytest.fixture(params=["model", "codes"])
def kv_format(request: pytest.FixtureRequest) -> Any:
    """Whether the card's codes are kept, and decoded for each token."""
    return request.param


def generated(model: Any, start: int, mode: dict[str, Any], **arguments: Any) -> list[list[int]]:
    torch.manual_seed(0)
    count = {"max_new_tokens": 14, "min_new_tokens": 14}
    return model.generate(**arguments, **mode, **count)[:, start:].tolist()  # type: ignore[no-any-return]


def from_text(model: Any, mode: dict[str, Any]) -> list[list[int]]:
    mask = torch.ones_like(IDS)
    return generated(model, IDS.shape[1], mode, input_ids=IDS, attention_mask=mask)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("family", FAMILIES)
def test_same_sequences(family: str, mode: str, growth: int, kv_format: Any) -> None:
    model = tiny_model(family)
    arguments = capture(model, None, CONTEXT, codec=Raw()).inputs(
        model, new=NEW, kv_format=kv_format
    )
    found = generated(model, IDS.shape[1], MODES[mode], **arguments)
    assert found == from_text(model, MODES[mode])


@pytest.mark.parametrize("family", FAMILIES)
def test_assisted_generation(family: str, growth: int, kv_format: Any) -> None:
    """Guesses of another model are cropped away again."""
    model, assistant = tiny_model(family), tiny_model("llama", seed=1, num_hidden_layers=1)
    arguments = capture(model, None, CONTEXT, codec=Raw()).inputs(
        model, new=NEW, kv_format=kv_format
    )
    greedy = {"do_sample": False}
    found = generated(model, IDS.shape[1], greedy | {"assistant_model": assistant}, **arguments)
    assert found == from_text(model, greedy)


def test_several_sequences_from_one_card(llama: Any, growth: int, kv_format: Any) -> None:
    """A batch of different continuations, padded on the left."""
    card = capture(llama, None, CONTEXT, codec=Raw())
    arguments = card.inputs(llama, new=NEW, kv_format=kv_format)
    short = NEW[:4]
    arguments["input_ids"] = torch.tensor([CONTEXT + NEW, [*CONTEXT, 0, 0, 0, *short]])
    mask = torch.ones(2, len(CONTEXT) + len(NEW), dtype=torch.long)
    mask[1, len(CONTEXT) : len(CONTEXT) + 3] = 0
    greedy = {"do_sample": False}
    found = generated(llama, IDS.shape[1], greedy, **arguments | {"attention_mask": mask})
    for row, new in zip(found, (NEW, short), strict=True):
        ids = torch.tensor([CONTEXT + new])
        alone = generated(
            llama,
            ids.shape[1],
            {"do_sample": False},
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
        )
        assert row == alone[0]


def step(model: Any, cache: Any, tokens: list[int], rows: int = 1) -> torch.Tensor:
    with torch.no_grad():
        known = cache.get_seq_length()
        return model(  # type: ignore[no-any-return]
            input_ids=torch.tensor([tokens] * rows),
            attention_mask=torch.ones(rows, known + len(tokens), dtype=torch.long),
            past_key_values=cache,
        ).logits


def both(family: str, kv_format: Any = "model") -> tuple[Any, Any, Any]:
    """A model, transformers' cache of the context, and the card's."""
    model = tiny_model(family)
    plain = DynamicCache(config=model.config)
    step(model, plain, CONTEXT)
    card = capture(model, None, CONTEXT, codec=Raw())
    return (
        model,
        plain,
        card.inputs(model, new=NEW, kv_format=kv_format)["past_key_values"],
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_a_cache_under_any_treatment_is_transformers_own(
    family: str, growth: int, kv_format: Any
) -> None:
    model, plain, ours = both(family, kv_format)
    sliding = any(isinstance(layer, SlidingLayer) for layer in ours.layers)
    treatments = [
        lambda cache: step(model, cache, NEW),
        lambda cache: step(model, cache, NEW[:1]),
        lambda cache: None if sliding else cache.crop(-4),
        lambda cache: step(model, cache, NEW[1:3]),
        lambda cache: cache.batch_repeat_interleave(3),
        lambda cache: step(model, cache, NEW[:2], 3),
        lambda cache: cache.reorder_cache(torch.tensor([2, 0, 0])),
        lambda cache: step(model, cache, NEW[:1], 3),
        lambda cache: cache.batch_select_indices(torch.tensor([1])),
        *[lambda cache: step(model, cache, NEW[:1])] * 20,
    ]
    for treat in treatments:
        one, two = treat(plain), treat(ours)
        if isinstance(one, torch.Tensor):
            torch.testing.assert_close(one, two)
        assert plain.get_seq_length() == ours.get_seq_length()
        for theirs, own in zip(plain.layers, attention_layers(ours), strict=True):
            torch.testing.assert_close(theirs.keys, own.keys)
            torch.testing.assert_close(theirs.values, own.values)
            assert theirs.get_mask_sizes(2) == own.get_mask_sizes(2)


@pytest.mark.parametrize("family", ["mistral", "gemma3"])
def test_a_recorded_window_can_be_rolled_back(family: str, growth: int) -> None:
    model, plain, ours = both(family)
    for cache in (plain, ours):
        cache.activate_past_recording()
        step(model, cache, NEW)
        cache.crop(-3)
    torch.testing.assert_close(step(model, plain, NEW), step(model, ours, NEW))


def test_a_token_does_not_copy_the_context(llama: Any) -> None:
    arguments = capture(llama, None, CONTEXT, codec=Raw()).inputs(llama, new=NEW)
    cache = arguments["past_key_values"]
    layer = cache.layers[0]
    assert isinstance(layer, FullLayer)
    places = {layer.keys.data_ptr()}
    for token in NEW + NEW:
        step(llama, cache, [token])
        places.add(layer.keys.data_ptr())
    assert len(places) == 1


def test_a_window_moves_through_its_buffer() -> None:
    layer = SlidingLayer(WINDOW)
    seen: list[torch.Tensor] = []
    for number in range(3 * growing.STEP):
        seen.append(torch.full((1, 2, 1, 4), float(number)))
        keys, values = layer.update(seen[-1], -seen[-1])
        expected = torch.cat(seen[-WINDOW:], dim=2)
        assert torch.equal(keys, expected)
        assert torch.equal(values, -expected)
    assert layer._buffers["keys"].shape[-2] < 2 * growing.STEP


@pytest.mark.parametrize("way", [copy.copy, copy.deepcopy])
@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_copies_do_not_write_over_each_other(family: str, way: Any, kv_format: Any) -> None:
    model, plain, ours = both(family, kv_format)
    step(model, ours, NEW)
    step(model, plain, NEW)
    copies = [copy.copy(ours), copy.copy(ours)]
    for number, one in enumerate(copies):
        one.layers = [way(layer) for layer in ours.layers]
        step(model, one, some_ids(5, seed=number + 5))
    for one in copies:
        expected = copy.deepcopy(plain)
        step(model, expected, some_ids(5, seed=copies.index(one) + 5))
        torch.testing.assert_close(step(model, expected, [9]), step(model, one, [9]))
