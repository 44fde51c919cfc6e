"""`check` finds models that do not go on from a card as from the text."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from qkvshare.hf.cache.card_cache import CardCache
from qkvshare.hf.check import cache_bytes, check

from ..conftest import FAMILIES, some_ids, tiny_model
from ..models.tiny import tiny_model as any_model

CONTEXT, NEW = np.array(some_ids(40), np.int32), np.array(some_ids(5, seed=1), np.int32)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_whose_text_is_the_same(family: str) -> None:
    found = check(tiny_model(family), CONTEXT, NEW)
    assert (found.differs, found.layer) == (None, None)
    assert isinstance(found.bits["raw"], float)
    assert found.bits["raw"] > found.bits["packed"]  # type: ignore[operator]
    assert "needs a profile" in str(found.bits["transform"])


def test_a_model_with_states() -> None:
    found = check(any_model("granitemoehybrid"), CONTEXT, NEW)
    assert found.differs is None
    assert {state.kind for state in found.states} == {"conv", "recurrent"}


def test_a_model_whose_text_is_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """As of a kind of layer that a card does not carry rightly."""
    update = CardCache.update

    def wrong(self: Any, keys: Any, values: Any, layer_idx: int, *rest: Any, **named: Any) -> Any:
        keys, values = update(self, keys, values, layer_idx, *rest, **named)
        return (keys, values.flip(2)) if layer_idx == 1 else (keys, values)

    monkeypatch.setattr(CardCache, "update", wrong)
    found = check(tiny_model("llama"), CONTEXT, NEW)
    assert found.differs is not None
    assert found.layer == 2  # the first one behind it


def test_bytes_of_a_token() -> None:
    model = tiny_model("llama")
    layers = check(model, CONTEXT, NEW, tokens=1).layers
    assert cache_bytes(layers, torch.float32) == 3 * 2 * (8 + 8) * 4
