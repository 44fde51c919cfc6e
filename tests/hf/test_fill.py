"""A card is decoded for its own model only, by two threads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from qkvshare import CacheCard, Packed, capture
from qkvshare.card.errors import CardDigestError, IdentityError, PromptError
from qkvshare.codecs import packed_cpu
from qkvshare.hf.inject import fill, inject
from qkvshare.hf.inject.bound import BoundCard

from ..conftest import greedy, greedy_from_text, some_ids, tiny_model

CONTEXT, NEW = some_ids(150), some_ids(7, seed=1)


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> CacheCard:
    """Two threads take its layers."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    return capture(tiny_model(), None, CONTEXT, codec=Packed(), bits=8)


def other_model() -> Any:
    model = tiny_model()
    with torch.no_grad():
        model.lm_head.weight[0, 0] += 1
    return model


def test_nothing_is_decoded_for_another_model(
    card: CacheCard, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = other_model()
    before = greedy_from_text(model, CONTEXT + NEW)
    with pytest.raises(IdentityError, match="weights: card has"):
        BoundCard(card, model)
    for module, name in ((fill, "allocate"), (fill, "decode_runs"), (inject, "from_record")):
        monkeypatch.setattr(module, name, lambda *_: pytest.fail("the card is not the model's"))
    for how in ("model", "bfloat16", "codes"):
        with pytest.raises(IdentityError, match="weights: card has"):
            card.inputs(model, new=NEW, kv_format=how)
    monkeypatch.undo()
    assert greedy_from_text(model, CONTEXT + NEW) == before
    mine = tiny_model()
    assert greedy(mine, **card.inputs(mine, new=NEW))


def test_of_another_models_card_nothing_else_is_said(card: CacheCard) -> None:
    """Neither that it is damaged nor that the prompt is wrong."""
    name = next(name for name in card.tensors if name.startswith("kv.0001"))
    bytes_ = np.array(card.tensors[name])
    bytes_[-1] ^= 1
    damaged = CacheCard(card.manifest, {**card.tensors, name: bytes_})
    with pytest.raises(CardDigestError, match="layer 1"):
        damaged.inputs(tiny_model(), new=NEW)
    for given in (damaged, card):
        with pytest.raises(IdentityError, match="weights: card has"):
            given.inputs(other_model(), new=NEW)
    with pytest.raises(PromptError):
        card.inputs(tiny_model(), prompt_ids=NEW)
    with pytest.raises(IdentityError, match="weights: card has"):
        card.inputs(other_model(), prompt_ids=NEW)


@pytest.mark.parametrize("beforehand", [1, 1 << 23])
def test_threads_that_share_a_card_give_the_same_numbers(
    card: CacheCard, beforehand: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Whoever decodes a layer, and in inference mode too."""
    model = tiny_model()
    with monkeypatch.context() as patch:
        patch.setattr(torch, "get_num_threads", lambda: 1)
        expected = card.inputs(model, new=NEW)["past_key_values"].layers
    monkeypatch.setattr(packed_cpu, "_BEFOREHAND", beforehand)
    loaded = CacheCard.load(card.save(tmp_path / "card"))
    for inference in (False, True):
        with torch.inference_mode(inference):
            found = loaded.inputs(model, new=NEW)["past_key_values"].layers
        for mine, theirs in zip(found, expected, strict=True):
            assert torch.equal(mine.keys, theirs.keys)
            assert torch.equal(mine.values, theirs.values)
