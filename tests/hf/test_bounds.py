"""What a hostile card can make a receiver do: no more than its own model's state, and not for
longer than the receiver wants."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from msgspec.structs import replace

from benchmarks.codecs import Kivi, Uniform
from qkvshare import CacheCard, Packed, Raw, capture, identify
from qkvshare.card.errors import CancelledError, IdentityError, PromptError
from qkvshare.codecs import Codec, Shape
from qkvshare.hf.session.answers import Prompt, Sampling
from qkvshare.hf.session.session import Session

from ..cards import card_of
from ..conftest import greedy, some_ids, tiny_model, tiny_tokenizer


def forged(model: Any, tokens: int, **geometry: int) -> CacheCard:
    """Rows of no bits: a byte each, whatever they stand for."""
    known = capture(model, None, [5, 6]).manifest
    layers = [replace(layer, **geometry) for layer in known.layers]
    shapes = [Shape.of(layer, tokens) for layer in layers]
    blobs = [np.zeros(Packed().overhead(shape), np.uint8) for shape in shapes]
    ids = np.full(tokens, 5, np.int32)
    return card_of(ids, blobs, Packed(), layers, known.identity)


@pytest.mark.parametrize(
    "geometry", [{"v_head_dim": 4096}, {"v_head_dim": 4}, {"head_dim": 4096}, {"kv_heads": 1}]
)
@pytest.mark.parametrize("how", [{}, {"kv_format": "codes"}])
def test_card_of_another_geometry(
    llama: Any, geometry: dict[str, int], how: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    card = forged(llama, 200, **geometry)
    monkeypatch.setattr(Packed, "decode", None)  # nothing is decoded
    with pytest.raises(IdentityError, match="KV heads, head dims of keys and values"):
        card.inputs(llama, new=[5], **how)


def test_sparse_card_that_is_longer_than_the_context(llama: Any) -> None:
    card = forged(llama, 100_000)
    assert card.nbytes < 5_000_000
    with pytest.raises(PromptError):
        card.inputs(llama, new=[5])


CODECS: list[Codec] = [Raw(), Uniform(4), Kivi(4), Packed()]


@pytest.mark.parametrize("codec", CODECS, ids=lambda codec: codec.name)
@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_inject_stops_between_layers(
    codec: Codec, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model(family)
    card = capture(model, None, some_ids(140), codec=codec)
    asked, read = 0, []

    def cancelled() -> bool:
        nonlocal asked
        asked += 1
        return len(read) == 2

    genuine = CacheCard._blob

    def blob(card: CacheCard, number: int, segment: int) -> Any:
        read.append(number)
        return genuine(card, number, segment)

    monkeypatch.setattr(CacheCard, "_blob", blob)
    with pytest.raises(CancelledError, match="called it off"):
        card.inputs(model, new=[5], cancelled=cancelled)
    assert read == [0, 1]
    assert asked >= 3
    if family == "llama" and codec.independent:
        read.clear()
        with pytest.raises(CancelledError):
            card.inputs(model, new=[5], kv_format="codes", cancelled=cancelled)
        assert read == [0, 1]
    monkeypatch.undo()
    # Threads that decode meanwhile are back, and the model is as it was.
    assert greedy(model, 4, **card.inputs(model, new=[5]))


def test_answer_that_is_called_off_while_its_card_is_injected() -> None:
    model, tokenizer = tiny_model("llama"), tiny_tokenizer()
    resident = Session(model, tokenizer)
    card = capture(model, tokenizer, some_ids(140))
    prompt = Prompt(np.array([*card.token_ids, 5, 6], np.int32), card, named=True)
    with torch.no_grad():
        answer = resident.answer(prompt, Sampling(max_tokens=4), cancelled=lambda: True)
    assert answer.finish == "cancelled"
    assert "read" not in answer.stages_ms
    assert answer.new_tokens == 0
    assert identify(model).weights == card.manifest.identity.weights
