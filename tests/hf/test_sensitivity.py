"""What is measured of the model itself, once."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from qkvshare import Packed, capture, identify
from qkvshare.allocation import Lagrangian
from qkvshare.hf.capture import sensitivity as module
from qkvshare.hf.capture.sensitivity import sensitivity

from ..conftest import FAMILIES, some_ids, tiny_model


@pytest.fixture(autouse=True)
def _forget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_known", {})


@pytest.mark.parametrize("family", FAMILIES)
def test_every_head_is_measured_and_the_model_is_left_alone(family: str) -> None:
    model = tiny_model(family)
    before = identify(model)
    found = sensitivity(model, before)
    assert len(found) == model.config.num_hidden_layers
    for layer in found:
        assert layer.shape == (2, model.config.num_key_value_heads)
        assert (layer > 0).all()
        assert torch.isfinite(layer).all()
    assert all(part.grad is None for part in model.parameters())
    assert identify(model) == before


def test_it_is_the_change_of_the_log_likelihood() -> None:
    """A head whose output counts twice as much is four times as sensitive in its values."""
    model = tiny_model("llama")
    heads, dim = model.config.num_key_value_heads, model.config.head_dim
    group = model.config.num_attention_heads // heads
    with torch.no_grad():  # else what is sampled would change with the head
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.mul_(1e-3)
    before = sensitivity(model, identify(model))
    with torch.no_grad():
        model.model.layers[-1].self_attn.o_proj.weight[:, : group * dim].mul_(2)
    after = sensitivity(model, identify(model))
    assert after[-1][1, 0] / before[-1][1, 0] == pytest.approx(4, rel=0.05)
    assert after[-1][1, 1] / before[-1][1, 1] == pytest.approx(1, rel=0.05)


def test_once_for_the_same_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    measure = module._measure
    monkeypatch.setattr(module, "_measure", lambda model: calls.append(model) or measure(model))
    for _ in range(2):
        capture(tiny_model("llama"), None, some_ids(200), bits=6)
    assert len(calls) == 1
    capture(tiny_model("qwen3"), None, some_ids(200), bits=6)
    assert len(calls) == 2
    alike = Lagrangian(sensitivity=0)
    capture(tiny_model("phi3"), None, some_ids(200), bits=6, codec=Packed(allocator=alike))
    assert len(calls) == 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_inside_of_inference_mode(dtype: torch.dtype) -> None:
    model = tiny_model("llama").to(dtype)
    with torch.inference_mode():
        found = sensitivity(model, identify(model))
    again = module._measure(model)
    assert torch.equal(torch.stack(found), torch.stack(again))


def test_a_model_without_gradients_is_named() -> None:
    model = tiny_model("llama")
    with torch.no_grad():
        model.lm_head.weight.zero_()  # all tokens alike, whatever is in the cache
    with pytest.warns(UserWarning, match=r"all heads count alike.*cannot be measured"):
        card = capture(model, None, some_ids(200), bits=6)
    alike = Packed(allocator=Lagrangian(sensitivity=0))
    told = capture(model, None, some_ids(200), bits=6, codec=alike)
    assert card.manifest.segments == told.manifest.segments
