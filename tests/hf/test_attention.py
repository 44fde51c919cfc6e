"""The attention function ``qkvshare`` is transformers' own, only sooner."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from qkvshare import Raw, capture, identify
from qkvshare.card.errors import UnsupportedModelError
from qkvshare.hf.attention import NAME, attention, attention_forward

from ..conftest import COMMON, FAMILIES, greedy, greedy_from_text, some_ids, tiny_model

CONTEXT, NEW = some_ids(90), some_ids(7, seed=1)


class Module:
    """What transformers passes: the layer."""

    def __init__(self, groups: int) -> None:
        self.num_key_value_groups, self.is_causal = groups, True


def tensors(
    batch: int, groups: int, new: int, tokens: int, dtype: Any, dim: int = 16
) -> list[torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    kv_heads = 2
    shapes = [(kv_heads * groups, new), (kv_heads, tokens), (kv_heads, tokens)]
    return [
        torch.randn(batch, heads, count, dim, generator=draw).to(dtype) for heads, count in shapes
    ]


def causal(batch: int, new: int, tokens: int, window: int | None) -> torch.Tensor:
    """Boolean ``[batch, 1, new, tokens]``; the second sequence has padding in front."""
    at, to = torch.arange(tokens - new, tokens)[:, None], torch.arange(tokens)[None]
    mask = (to <= at) & (to > at - (window or tokens))
    mask = mask[None, None].repeat(batch, 1, 1, 1)
    if batch > 1:
        mask[1, ..., :3] = False
    return mask


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize(("batch", "new", "tokens"), [(1, 1, 40), (1, 11, 40), (2, 7, 300)])
@pytest.mark.parametrize("added", [False, True])
@pytest.mark.parametrize("dim", [16, 64])
def test_parity_with_sdpa(
    batch: int,
    new: int,
    tokens: int,
    groups: int,
    window: int | None,
    dtype: Any,
    added: bool,
    dim: int,
) -> None:
    query, key, value = tensors(batch, groups, new, tokens, dtype, dim)
    mask = causal(batch, new, tokens, window)
    given: torch.Tensor = mask
    if added:
        given = torch.zeros(mask.shape, dtype=dtype).masked_fill_(~mask, torch.finfo(dtype).min)
    found, _ = attention_forward(Module(groups), query, key, value, given, scaling=0.3)
    exact = sdpa_attention_forward(
        Module(groups), query.float(), key.float(), value.float(), mask, scaling=0.3
    )[0]
    bound = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(found.float(), exact, atol=bound, rtol=bound)
    assert found.dtype == dtype
    assert found.is_contiguous()


def test_no_mask_means_one_query_that_sees_everything() -> None:
    query, key, value = tensors(1, 3, 1, 50, torch.float32)
    found, _ = attention_forward(Module(3), query, key, value, None)
    expected, _ = sdpa_attention_forward(Module(3), query, key, value, None)
    torch.testing.assert_close(found, expected)


def test_a_query_that_sees_nothing_is_not_nan() -> None:
    query, key, value = tensors(1, 1, 2, 9, torch.float32)
    found, _ = attention_forward(
        Module(1), query, key, value, torch.zeros(1, 1, 2, 9, dtype=torch.bool)
    )
    assert found.isfinite().all()


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"dropout": 0.5}, "dropout"),
        ({"position_bias": torch.zeros(1, 2, 2, 9)}, "position_bias"),
        ({"attention_mask": torch.ones(1, 2, 2, 9, dtype=torch.bool)}, "masks of single heads"),
    ],
)
def test_what_it_cannot_do_it_says(arguments: dict[str, Any], named: str) -> None:
    query, key, value = tensors(1, 1, 2, 9, torch.float32)
    whole = {"attention_mask": causal(1, 2, 9, None)} | arguments
    torch.manual_seed(0)
    with pytest.warns(UserWarning, match=named):
        found, _ = attention_forward(Module(1), query, key, value, **whole)
    torch.manual_seed(0)
    expected, _ = sdpa_attention_forward(Module(1), query, key, value, **whole)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("name", ["softcap", "s_aux", "sinks", "indices", "whatever_comes_next"])
def test_an_unknown_argument_is_never_ignored(name: str) -> None:
    query, key, value = tensors(1, 1, 2, 9, torch.float32)
    unknown: dict[str, Any] = {name: torch.ones(2)}
    with (
        pytest.warns(UserWarning, match=name),
        pytest.raises(UnsupportedModelError, match=f"passes '{name}' to its attention"),
    ):
        attention_forward(Module(1), query, key, value, causal(1, 2, 9, None), **unknown)
    attention_forward(Module(1), query, key, value, causal(1, 2, 9, None), **{name: None})


# Models whose attention does more than keys, values and a mask: sinks, or a cap on scores.
_MORE: dict[str, dict[str, Any]] = {
    "gpt_oss": {
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
    },
    "granite_swa": {},
    "gemma2": {
        "attn_logit_softcapping": 1.0,
        "query_pre_attn_scalar": 8,
        "tie_word_embeddings": False,
    },
}


@pytest.mark.parametrize("family", _MORE)
def test_sinks_and_caps_are_not_dropped(family: str) -> None:
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **{**COMMON, "sliding_window": 8, **_MORE[family]})
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("sinks"):
                parameter.normal_(0, 3)
        if family == "gemma2":
            model.model.embed_tokens.weight *= 0.05
    expected = greedy_from_text(model, CONTEXT + NEW)
    assert greedy_from_text(model, some_ids(90, seed=5) + NEW) != expected
    model.set_attn_implementation(NAME)
    with pytest.warns(UserWarning, match="'qkvshare' leaves 's(_aux|oftcap)' to transformers"):
        card = capture(model, None, CONTEXT, codec=Raw())
    with pytest.warns(UserWarning, match="to transformers"):
        assert greedy(model, **card.inputs(model, new=NEW)) == expected
    model.set_attn_implementation("eager")
    assert greedy(model, **card.inputs(model, new=NEW)) == expected
    capture(model, None, CONTEXT, bits=9)  # looks on while the model reads


@pytest.mark.parametrize("mode", [{}, {"num_beams": 3}], ids=["greedy", "beams"])
@pytest.mark.parametrize("family", FAMILIES)
def test_same_text(family: str, mode: dict[str, Any]) -> None:
    model = tiny_model(family)
    expected = greedy_from_text(model, CONTEXT + NEW)
    if mode:
        ids = torch.tensor([CONTEXT + NEW])
        expected = greedy(model, input_ids=ids, attention_mask=torch.ones_like(ids), **mode)
    before = identify(model)
    model.set_attn_implementation(NAME)
    assert identify(model) == before
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        card = capture(model, None, CONTEXT, codec=Raw())
        assert greedy(model, **card.inputs(model, new=NEW), **mode) == expected


def test_a_block_switches_the_attention_and_back(llama: Any) -> None:
    before = llama.config._attn_implementation
    with attention(llama):
        assert llama.config._attn_implementation == NAME
    assert llama.config._attn_implementation == before
    with pytest.raises(KeyError), attention(llama):
        raise KeyError
    assert llama.config._attn_implementation == before


def test_a_model_that_cannot_be_switched(llama: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(llama.model), "_can_set_attn_implementation", lambda *_: False)
    with pytest.raises(UnsupportedModelError, match="cannot be switched"), attention(llama):
        pass


def test_probes_see_the_same(llama: Any) -> None:
    """Scores, and so the bits of a card, do not depend on the attention function."""
    model = tiny_model()
    cards = [capture(model, None, CONTEXT, bits=9)]
    model.set_attn_implementation(NAME)
    cards.append(capture(model, None, CONTEXT, bits=9))
    assert cards[0].manifest.segments[0].blobs == cards[1].manifest.segments[0].blobs


def test_a_mask_that_was_written_to_is_read_again() -> None:
    """What is made of one for all layers is not used any more."""
    query, key, value = tensors(1, 3, 5, 40, torch.bfloat16)
    mask = causal(1, 5, 40, None)
    for _ in range(2):
        found, _ = attention_forward(Module(3), query, key, value, mask)
        expected, _ = sdpa_attention_forward(Module(3), query, key, value, mask)
        torch.testing.assert_close(found, expected, atol=2e-2, rtol=2e-2)
        mask[..., 20:30] = False
    with torch.inference_mode():
        again, _ = attention_forward(Module(3), query, key, value, mask.clone())
    torch.testing.assert_close(again, attention_forward(Module(3), query, key, value, mask)[0])
