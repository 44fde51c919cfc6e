"""The attention function ``qkvshare`` is transformers' own, only sooner."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from qkvshare import Raw, capture, identify, inject
from qkvshare.hf import attention as attention_module
from qkvshare.hf.attention import NAME, attention

from ..conftest import FAMILIES, greedy, greedy_from_text, some_ids, tiny_model

CONTEXT, NEW = some_ids(90), some_ids(7, seed=1)


class Module:
    """What transformers passes: the layer."""

    def __init__(self, groups: int) -> None:
        self.num_key_value_groups, self.is_causal = groups, True


def tensors(batch: int, groups: int, new: int, tokens: int, dtype: Any) -> list[torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    kv_heads, dim = 2, 16
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
def test_parity_with_sdpa(
    batch: int, new: int, tokens: int, groups: int, window: int | None, dtype: Any, added: bool
) -> None:
    query, key, value = tensors(batch, groups, new, tokens, dtype)
    mask = causal(batch, new, tokens, window)
    given: torch.Tensor = mask
    if added:
        given = torch.zeros(mask.shape, dtype=dtype).masked_fill_(~mask, torch.finfo(dtype).min)
    found, _ = attention(Module(groups), query, key, value, given, scaling=0.3)
    exact = sdpa_attention_forward(
        Module(groups), query.float(), key.float(), value.float(), mask, scaling=0.3
    )[0]
    bound = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(found.float(), exact, atol=bound, rtol=bound)
    assert found.dtype == dtype
    assert found.is_contiguous()


def test_no_mask_means_one_query_that_sees_everything() -> None:
    query, key, value = tensors(1, 3, 1, 50, torch.float32)
    found, _ = attention(Module(3), query, key, value, None)
    expected, _ = sdpa_attention_forward(Module(3), query, key, value, None)
    torch.testing.assert_close(found, expected)


def test_a_query_that_sees_nothing_is_not_nan() -> None:
    query, key, value = tensors(1, 1, 2, 9, torch.float32)
    found, _ = attention(Module(1), query, key, value, torch.zeros(1, 1, 2, 9, dtype=torch.bool))
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
        found, _ = attention(Module(1), query, key, value, **whole)
    torch.manual_seed(0)
    expected, _ = sdpa_attention_forward(Module(1), query, key, value, **whole)
    torch.testing.assert_close(found, expected)
    with pytest.warns(UserWarning, match="softcap"), pytest.raises(ValueError, match="softcap"):
        attention(Module(1), query, key, value, causal(1, 2, 9, None), softcap=3.0)


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
        card = capture(model, token_ids=CONTEXT, codec=Raw())
        assert greedy(model, **inject(model, card, NEW), **mode) == expected


def test_probes_see_the_same(llama: Any) -> None:
    """Scores, and so the bits of a card, do not depend on the attention function."""
    model = tiny_model()
    cards = [capture(model, token_ids=CONTEXT, budget=9)]
    model.set_attn_implementation(NAME)
    cards.append(capture(model, token_ids=CONTEXT, budget=9))
    assert cards[0].manifest.segments[0].blobs == cards[1].manifest.segments[0].blobs


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize("added", [False, True])
@pytest.mark.parametrize(("new", "tokens"), [(1, 41), (1, 40), (11, 41), (11, 40)])
def test_threads_with_unequal_shares_take_parts_of_the_tokens(
    monkeypatch: pytest.MonkeyPatch,
    new: int,
    tokens: int,
    added: bool,
    window: int | None,
    dtype: Any,
) -> None:
    """Also where a part has nothing that a query sees, and where one token is in both."""
    query, key, value = (
        each[:, : each.shape[1] // 2] for each in tensors(1, 3, new, tokens, dtype)
    )
    taken = []

    def by_parts(*arguments: Any) -> torch.Tensor:
        taken.append(arguments)
        return _by_parts(*arguments)

    _by_parts = attention_module._by_parts
    monkeypatch.setattr(attention_module, "_by_parts", by_parts)
    monkeypatch.setattr(attention_module, "_WORTH_PARTS", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    seen = causal(1, new, tokens, window)
    lowest = -torch.inf if new == 11 else torch.finfo(dtype).min
    given = torch.zeros(seen.shape, dtype=dtype).masked_fill_(~seen, lowest) if added else seen
    exact = sdpa_attention_forward(
        Module(3), query.float(), key.float(), value.float(), seen, scaling=0.3
    )[0]
    bound = 1e-5 if dtype == torch.float32 else 2e-2
    for _ in range(2):  # layers share a mask
        with torch.no_grad():
            found, _ = attention(Module(3), query, key, value, given, scaling=0.3)
        torch.testing.assert_close(found.float(), exact, atol=bound, rtol=bound)
    assert len(taken) == 2 * added
    if added:
        given[..., -1] = lowest  # what was made of it is not used any more
        with torch.no_grad():
            found, _ = attention(Module(3), query, key, value, given, scaling=0.3)
        seen[..., -1] = False
        exact = sdpa_attention_forward(
            Module(3), query.float(), key.float(), value.float(), seen, scaling=0.3
        )[0]
        torch.testing.assert_close(found.float(), exact, atol=bound, rtol=bound)
    with torch.inference_mode():
        given = given.clone()
        attention(Module(3), query, key, value, given, scaling=0.3)
    assert len(taken) == 3 * added


def test_parts_without_a_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_module, "_WORTH_PARTS", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    for tokens in (50, 51):
        query, key, value = (each[:, :3] for each in tensors(1, 3, 1, tokens, torch.float32))
        key, value = key[:, :1], value[:, :1]
        with torch.no_grad():
            found, _ = attention(Module(3), query, key, value, None)
        expected, _ = sdpa_attention_forward(Module(3), query, key, value, None)
        torch.testing.assert_close(found, expected)
