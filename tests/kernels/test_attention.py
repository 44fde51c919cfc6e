"""Attention of few queries on a processor, against the same in double precision."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from qkvshare.kernels.attention import Piece, attend
from qkvshare.kernels.native import native

LOWEST = torch.finfo(torch.float32).min

pytestmark = pytest.mark.skipif(native is None, reason="there are no native kernels here")


def tensors(
    batch: int, kv_heads: int, group: int, new: int, tokens: int, dim: int, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """As a model gives them: queries with heads side by side, keys and values with spare room,
    which is no number."""
    draw = torch.Generator().manual_seed(seed)
    query = torch.randn(batch, new, kv_heads * group, dim, generator=draw).transpose(1, 2)
    held = []
    for spare in (9, 5):
        room = torch.full((batch, kv_heads, tokens + spare, dim), torch.nan)
        room[:, :, :tokens] = torch.randn(batch, kv_heads, tokens, dim, generator=draw)
        held.append(room[:, :, :tokens])
    return query, *held


def causal(batch: int, new: int, tokens: int, hidden: float) -> Tensor:
    """Added, ``[batch, 1, new, tokens]``; the second sequence does not see its first half."""
    at, to = torch.arange(tokens - new, tokens)[:, None], torch.arange(tokens)[None]
    mask = torch.zeros(batch, 1, new, tokens).masked_fill_(to > at, hidden)
    if batch > 1:
        mask[1, :, :, : tokens // 2] = hidden
    return mask


def exact(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    group = query.shape[1] // key.shape[1]
    key, value = (each.double().repeat_interleave(group, 1) for each in (key, value))
    scores = query.double() @ key.transpose(2, 3) * 0.3
    if mask is not None:
        scores += mask
    return (scores.softmax(-1) @ value).transpose(1, 2).float()


@pytest.mark.parametrize("dim", [64, 128, 256])
@pytest.mark.parametrize(("batch", "kv_heads", "group"), [(1, 3, 3), (2, 1, 7), (2, 2, 1)])
@pytest.mark.parametrize(
    ("new", "tokens"), [(1, 1), (1, 64), (2, 63), (11, 65), (5, 700), (1, 1500), (33, 1040)]
)
@pytest.mark.parametrize("hidden", [None, LOWEST, -torch.inf])
def test_equals_attention_in_double_precision(
    batch: int, kv_heads: int, group: int, new: int, tokens: int, dim: int, hidden: float | None
) -> None:
    query, key, value = tensors(batch, kv_heads, group, new, tokens, dim)
    mask = None if hidden is None else causal(batch, new, tokens, hidden)
    found = attend(query, key, value, mask, 0.3)
    expected = exact(query, key, value, mask)
    seen = ~expected.isnan()  # a query that sees nothing has no answer
    torch.testing.assert_close(found[seen], expected[seen], atol=2e-5, rtol=1e-4)
    assert found.isfinite().all()
    assert found.is_contiguous()


@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_any_shape_and_any_scores(data: st.DataObject) -> None:
    """Also scores that are far apart, and masks in the middle."""
    kv_heads, group, new, tokens = (
        data.draw(st.integers(1, most), label=name)
        for name, most in (("kv_heads", 4), ("group", 5), ("new", 9), ("tokens", 1200))
    )
    query, key, value = tensors(1, kv_heads, group, new, tokens, 64, data.draw(st.integers(0, 99)))
    scale = data.draw(st.sampled_from([0.0, 1.0, 30.0, 1e4]), label="scale")
    query, mask = query * scale, torch.zeros(1, 1, new, tokens)
    start = data.draw(st.integers(0, tokens), label="start")
    mask[..., start : data.draw(st.integers(start, tokens), label="stop")] = LOWEST
    found = attend(query, key, value, mask, 0.3)
    if (mask == 0).any():
        expected = exact(query, key, value, mask)
        # Scores of 1e5 are rounded to 1e-2, and so much differ weights of nearly equal ones.
        torch.testing.assert_close(found, expected, atol=1e-4 if scale < 1e4 else 2e-2, rtol=1e-2)
    assert found.isfinite().all()


@pytest.mark.parametrize("dim", [64, 128, 256])
@pytest.mark.parametrize("group", [1, 2, 3, 4, 5])
@pytest.mark.parametrize(("new", "tokens"), [(1, 1), (1, 64), (1, 700), (3, 63), (11, 1100)])
def test_bfloat16_is_attended_to_as_the_float32_that_it_is(
    dim: int, group: int, new: int, tokens: int
) -> None:
    query, *held = tensors(2, 2, group, new, tokens, dim)
    key, value = (each.bfloat16() for each in held)
    mask = causal(2, new, tokens, LOWEST)
    expected = attend(query, key.float(), value.float(), mask, 0.3)
    assert torch.equal(attend(query, key, value, mask, 0.3), expected)
    # Of each token all heads side by side.
    apart = [each.transpose(1, 2).contiguous().transpose(1, 2) for each in (key, value)]
    assert torch.equal(attend(query, *apart, mask, 0.3), expected)
    assert torch.equal(attend(query, *(each.float() for each in apart), mask, 0.3), expected)


def test_of_a_wider_mask_the_first_tokens_count() -> None:
    """As of a cache with room for more."""
    query, key, value = tensors(2, 2, 3, 5, 700, 64)
    mask = causal(2, 5, 700, LOWEST)
    wide = torch.cat((mask, torch.full((2, 1, 5, 9), torch.nan)), 3)
    expected = attend(query, key, value, mask, 0.3)
    assert torch.equal(attend(query, key, value, wide, 0.3), expected)


def test_the_same_bits_for_any_number_of_threads() -> None:
    query, key, value = tensors(1, 3, 3, 7, 2100, 64)
    mask, before, found = causal(1, 7, 2100, LOWEST), torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(attend(query, key, value, mask, 0.3))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_several_agents_at_once() -> None:
    """From threads of their own."""
    cases = [tensors(1, 2, 3, 2, 900, 64, seed) for seed in range(8)]
    expected = [attend(*case, None, 0.3) for case in cases]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            found = list(pool.map(lambda case: attend(*case, None, 0.3), cases))
            assert all(map(torch.equal, found, expected))


def test_a_number_that_is_none_is_told() -> None:
    query, key, value = tensors(1, 1, 1, 1, 100, 64)
    key[0, 0, 70, 3] = torch.nan
    assert attend(query, key, value, None, 0.3).isnan().any()


@pytest.mark.parametrize(
    "change",
    [
        lambda q, k, v: (q.bfloat16(), k.bfloat16(), v.bfloat16(), None),
        lambda q, k, v: (q, k.bfloat16(), v, None),
        lambda q, k, v: (q, k.half(), v.half(), None),
        lambda q, k, v: (q[..., :40], k[..., :40], v[..., :40], None),
        lambda q, k, v: (q, k, v[..., :32], None),
        lambda q, k, v: (q, k.transpose(2, 3).contiguous().transpose(2, 3), v, None),
        lambda q, k, v: (q, k, v, torch.ones(1, 1, 1, 90, dtype=torch.bool)),
        lambda q, k, v: (q.clone().requires_grad_(), k, v, None),
        lambda q, k, v: (q, k, v, torch.zeros(1, 1, 1, 89)),
        lambda q, k, v: (q, k, v, torch.zeros(1, 1, 2, 90)),
        lambda q, k, v: (q, k, v, torch.zeros(2, 1, 1, 90)),
        lambda q, k, v: (q, k, v, torch.zeros(1, 1, 1, 90), ((Piece(1, None, ()), 1),)),
        lambda q, k, v: (q.expand(2, -1, -1, -1), k, v, None),
    ],
    ids=[
        "bfloat16",
        "keys alone",
        "float16",
        "dim",
        "value dim",
        "strides",
        "boolean",
        "gradient",
        "short mask",
        "mask of more queries",
        "mask of more sequences",
        "mask without the coded",
        "batch",
    ],
)
def test_what_it_leaves_to_others(change: Any) -> None:
    """Kernels read by address: what has another shape would be read outside."""
    given = tensors(1, 1, 2, 1, 90, 64)
    assert attend(*given, torch.zeros(1, 1, 1, 90), 0.3) is not None
    query, key, value, mask, *codes = change(*given)
    assert attend(query, key, value, mask, 0.3, *codes) is None


@pytest.mark.parametrize("isa", [] if native is None else native.isas())
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("new", "tokens"), [(1, 700), (2, 63), (11, 65)])
def test_every_instruction_set(isa: str, dtype: torch.dtype, new: int, tokens: int) -> None:
    query, *held = tensors(1, 2, 3, new, tokens, 128)
    key, value = (each.to(dtype) for each in held)
    mask = causal(1, new, tokens, LOWEST)
    native.use(isa)
    try:
        found = attend(query, key, value, mask, 0.3)
    finally:
        native.use(native.isas()[-1])
    expected = exact(query, key.float(), value.float(), mask)
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("at", "change"),
    [
        ((0, 3), 17), ((0, 4), 91), ((0, 5), 60), ((0, 0), 1 << 60), ((0, 1), -1),
        ((1, 1), 127), ((2, 4), 65), ((2, 3), -1), ((3, 3), 1 << 62), ((5, 1), 127),
        ((1, 0), 0), ((2, 0), 1), ((3, 1), 1 << 62), ((5, 0), 2),
    ],
)  # fmt: skip
def test_sizes_are_asked_by_the_kernel_too(at: tuple[int, int], change: int) -> None:
    """What would be read or written outside of the numbers given."""
    held = torch.zeros(1, 2, 90, 64)
    shape, none = [1, 2, 1, 1, 90, 64], [0] * 5
    where = [held.data_ptr(), held.numel(), *held.stride()[:3]]
    one = [held.data_ptr(), 128, 128, 64, 128]
    given = [shape, one, [*where], [*where], none, [*one], 0.3, False, [], 1]
    native.attend(*given)
    given[at[0]][at[1]] = change
    with pytest.raises(ValueError, match="."):
        native.attend(*given)


def test_steps_that_nobody_takes_may_be_anything() -> None:
    """A size of one has no next: its step was multiplied all the same, beyond 64 bits."""
    held, most = torch.ones(64), (1 << 63) - 1
    one = [held.data_ptr(), 64, most, most, most]
    out = torch.empty(64)
    to = [out.data_ptr(), 64, 0, 0, 0]
    native.attend([1, 1, 1, 1, 1, 64], one, one, one, [0] * 5, to, 0.3, False, [], 1)
    assert torch.equal(out, held)
    huge = 1 << 27  # sequences without queries have no numbers, and nothing is done for each
    native.attend([huge, huge, 0, 1, 1, 64], to, to, to, [0] * 5, to, 0.3, False, [], 1)
