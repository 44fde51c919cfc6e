"""Keys before RoPE: what the projection made, for every position encoding we claim."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from qkvshare import CacheCard, PromptError, capture
from qkvshare.card.digest import Bytes
from qkvshare.codecs import CODECS, Codec, LayerKV, Raw, Shape, empty
from qkvshare.codecs.base import leave
from qkvshare.hf.model import rope as rope_module
from qkvshare.hf.model.rope import Rope

from ..conftest import FAMILIES, greedy, greedy_from_text, some_ids, tiny_model
from .test_handoff import live_cache

CONTEXT, NEW = some_ids(40), some_ids(7, seed=1)

ROPES: dict[str, dict[str, Any]] = {
    "default": {"rope_type": "default", "rope_theta": 1e5},
    "linear": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0},
    "llama3": {
        "rope_type": "llama3",
        "rope_theta": 5e5,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
    "yarn": {
        "rope_type": "yarn",
        "rope_theta": 1e4,
        "factor": 4.0,
        "original_max_position_embeddings": 64,
    },
}


@dataclass(frozen=True)
class PlainPreRope(Codec):
    """``raw`` in float32 with un-rotated keys: shows the rotation alone."""

    name = "plain-pre-rope"

    def encode(self, layers: Iterable[LayerKV]) -> Iterator[Bytes]:
        yield from Raw().encode(LayerKV(at.keys.float(), at.values.float()) for at in layers)

    def decode(
        self, blobs: Iterable[Bytes], into: Iterable[LayerKV], then: Any = leave
    ) -> Iterator[LayerKV]:
        for blob, layer in zip(blobs, into, strict=True):
            (found,) = Raw().decode([blob], empty([layer.shape], torch.float32))
            layer.keys.copy_(found.keys)
            layer.values.copy_(found.values)
            then(layer)
            yield layer

    def parts(self, shape: Shape, nbytes: int) -> dict[str, int]:
        return {"codes": nbytes}


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CODECS, PlainPreRope.name, PlainPreRope)


def models() -> Iterator[Any]:
    for name, parameters in ROPES.items():
        yield pytest.param(lambda p=parameters: tiny_model(rope_parameters=p), id=name)
    for family in FAMILIES:
        yield pytest.param(lambda f=family: tiny_model(f), id=family)
    yield pytest.param(
        lambda: tiny_model(
            "phi3",
            rope_parameters={
                "rope_type": "default",
                "rope_theta": 1e4,
                "partial_rotary_factor": 0.5,
            },
        ),
        id="partial",
    )


@pytest.mark.parametrize("make", list(models()))
def test_unrotated_keys_are_what_was_rotated(make: Any) -> None:
    model = make()
    cache = live_cache(model, CONTEXT)
    for number, layer in enumerate(cache.layers):
        held = layer.keys.shape[2]
        positions = range(len(CONTEXT) - held, len(CONTEXT))
        rope = Rope(model, range(9))
        before = rope.unrotate(number, layer.keys[0], positions)
        torch.testing.assert_close(rope.rotate(number, before, positions), layer.keys[0])
        # lengths: rotation keeps them, up to the attention scaling of YaRN
        assert not torch.allclose(before, layer.keys[0], atol=1e-2)


@pytest.mark.parametrize("name", ROPES)
def test_unrotated_keys_do_not_depend_on_the_position(name: str) -> None:
    # in layer 0 the keys of one token, before RoPE, are the same wherever it stands
    model = tiny_model(rope_parameters=ROPES[name])
    cache = live_cache(model, [5] * 50)
    before = Rope(model, range(9)).unrotate(0, cache.layers[0].keys[0], range(50))
    torch.testing.assert_close(before, before[:, :1].expand_as(before), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("make", list(models()))
def test_same_text_by_way_of_unrotated_keys(make: Any) -> None:
    model = make()
    card = capture(model, None, CONTEXT, codec=PlainPreRope())
    assert greedy(model, **card.inputs(model, new=NEW)) == greedy_from_text(model, CONTEXT + NEW)
    longer = capture(model, None, CONTEXT + NEW, codec=PlainPreRope(), parent=card)
    assert greedy(model, **longer.inputs(model)) == greedy_from_text(model, CONTEXT + NEW)


def calls_of(model: Any, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many positions the model was asked for, each time."""
    embedding, asked = model.get_decoder().rotary_emb, list[int]()
    forward = embedding.forward

    def noted(x: Any, position_ids: Any, *more: Any, **named: Any) -> Any:
        asked.append(position_ids.shape[1])
        return forward(x, position_ids, *more, **named)

    monkeypatch.setattr(embedding, "forward", noted)
    return asked


def test_angles_are_kept_with_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    model, keys = tiny_model(), torch.randn(1, 3000, 8)
    asked = calls_of(model, monkeypatch)
    whole = Rope(model, range(9)).rotate(0, keys, range(3000))
    assert sum(asked) == 3072
    for start, stop in ((0, 3000), (0, 0), (7, 7), (1000, 1100), (2999, 3000)):
        part = Rope(model, range(9)).rotate(0, keys[:, start:stop], range(start, stop))
        assert torch.equal(part, whole[:, start:stop])
    assert sum(asked) == 3072
    Rope(model, range(9)).rotate(0, keys, range(200, 3200))  # the next page only
    assert sum(asked) == 4096


def test_angles_of_other_frequencies_are_not_those_that_were_kept() -> None:
    model, keys = tiny_model(), torch.randn(1, 40, 8)
    before, at = Rope(model, range(9)).rotate(0, keys, range(40)), torch.arange(40)
    embedding = model.get_decoder().rotary_emb

    def replace() -> None:
        known = embedding.inv_freq
        new = known * 0.5
        while new._version < known._version:
            new.add_(0)
        embedding.register_buffer("inv_freq", new, persistent=False)

    for change in (replace, lambda: embedding.inv_freq.mul_(0.5)):
        change()
        after = Rope(model, range(9)).rotate(0, keys, range(40))
        assert not torch.allclose(after, before, atol=1e-3)
        torch.testing.assert_close(after, Rope(model, range(9)).rotate(0, keys, at))
        before = after


def test_far_positions_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rope_module, "_KEPT", 100)
    model, keys = tiny_model(), torch.randn(1, 20, 8)
    asked = calls_of(model, monkeypatch)
    for _ in range(2):
        found = Rope(model, range(9)).rotate(0, keys, range(90, 110))
        torch.testing.assert_close(
            found, Rope(model, range(9)).rotate(0, keys, torch.arange(90, 110))
        )
    assert asked == [20] * 4


CHANGING: dict[str, dict[str, Any]] = {
    "dynamic": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0},
    "longrope": {
        "rope_type": "longrope",
        "rope_theta": 1e4,
        "factor": 4.0,
        "short_factor": [1.0, 1.1, 1.2, 1.3],
        "long_factor": [3.0, 3.5, 4.0, 4.5],
        "original_max_position_embeddings": 64,
    },
}


@pytest.mark.parametrize("kind", CHANGING)
def test_frequencies_that_change_with_length(kind: str, tmp_path: Path) -> None:
    """Up to the length at which they change a card is right, and beyond it there is none."""
    longest = 64 if kind == "dynamic" else 256
    model = tiny_model("llama", rope_parameters=CHANGING[kind], max_position_embeddings=longest)
    card = CacheCard.load(capture(model, None, CONTEXT, codec=Raw()).save(tmp_path / "card"))
    assert {layer.placed for layer in card.manifest.layers} == {True}
    expected = greedy_from_text(model, CONTEXT + NEW)
    assert greedy(model, **card.inputs(model, new=NEW)) == expected
    with torch.no_grad():  # it computes all of its keys at other frequencies from here on
        model(input_ids=torch.tensor([some_ids(longest + 20 if kind == "dynamic" else 80)]))
    assert greedy(model, **card.inputs(model, new=NEW)) == expected
    capture(model, None, CONTEXT)  # by the default codec
    with pytest.raises(PromptError, match=r"more than the 64"):
        capture(model, None, some_ids(65))
    with pytest.raises(PromptError, match=r"more than the 64"):
        card.inputs(model, new=some_ids(25))
