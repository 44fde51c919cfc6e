"""Attention straight on codes against attention on what they decode to."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from qkvshare.codecs import LayerBits, Packed, Shape, empty
from qkvshare.codecs.layers import LayerKV, RotatedKV
from qkvshare.hf.cache.coded import CodedRun
from qkvshare.hf.model.rotation import Rotation
from qkvshare.kernels.attention import Piece, attend, first_codes
from qkvshare.kernels.native import native

from .test_attention import LOWEST, causal

pytestmark = pytest.mark.skipif(native is None, reason="there are no native kernels here")


class Turning:
    """As `rope` makes them: keys are halves that turn as one."""

    def __init__(self, tokens: int, dim: int, draw: torch.Generator) -> None:
        angle = torch.randn(tokens, dim // 2, generator=draw)
        self.angles = angle.cos(), angle.sin()

    def __call__(self, keys: Tensor) -> Tensor:
        raise AssertionError("kernels turn keys on the way")


def coded(
    kv_heads: int, tokens: int, dim: int, start: int, turning: bool, seed: int
) -> tuple[CodedRun, LayerKV]:
    """A run as codes of all widths, and as numbers."""
    draw = torch.Generator().manual_seed(seed)
    shape, codec = Shape(kv_heads, tokens, dim, dim), Packed()
    layer = LayerKV(
        torch.randn(shape.keys, generator=draw), torch.randn(shape.values, generator=draw)
    )
    tiers = torch.tensor(codec.tiers, dtype=torch.uint8)
    bits = LayerBits(
        *(tiers[torch.randint(0, 8, (kv_heads, tokens), generator=draw)] for _ in range(2))
    )
    (blob,) = codec.encode([layer], [bits])
    turn: Rotation | Any = Turning(tokens, dim, draw) if turning else None
    one = CodedRun(codec, blob, start, shape, turn)
    (room,) = empty([shape], torch.float32)
    (numbers,) = codec.decode([blob], [RotatedKV(room.keys, room.values, turn and turn.angles)])
    return one, numbers


def compare(
    batch: int, kv_heads: int, group: int, new: int, sizes: list[int], tail: int, dim: int,
    kept: int | None = None, masked: bool = True, turning: bool = True,
) -> None:  # fmt: skip
    draw = torch.Generator().manual_seed(0)
    pieces, held, start = list[Piece](), list[LayerKV](), 0
    for seed, tokens in enumerate(sizes):
        one, numbers = coded(kv_heads, tokens, dim, start, turning, seed)
        assert one.piece is not None
        pieces.append(one.piece)
        held.append(numbers)
        start += tokens
    kept = start if kept is None else kept
    tails = [torch.randn(batch, kv_heads, tail, dim, generator=draw) for _ in range(2)]
    whole = [
        torch.cat([torch.cat(parts, 1)[None, :, :kept].expand(batch, -1, -1, -1), end], 2)
        for parts, end in zip(
            ([at.keys for at in held], [at.values for at in held]), tails, strict=True
        )
    ]
    query = torch.randn(batch, new, kv_heads * group, dim, generator=draw).transpose(1, 2)
    mask = causal(batch, new, kept + tail, LOWEST) if masked else None
    found = attend(query, *tails, mask, 0.1, first_codes(pieces, kept))
    torch.testing.assert_close(found, attend(query, *whole, mask, 0.1), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("dim", [64, 128, 256])
@pytest.mark.parametrize("turning", [True, False])
@pytest.mark.parametrize(("batch", "kv_heads", "group", "new"), [(1, 3, 3, 1), (2, 1, 2, 11)])
@pytest.mark.parametrize("sizes", [[1], [700], [512, 64, 1, 1100]], ids=str)
def test_equals_attention_to_numbers(
    batch: int, kv_heads: int, group: int, new: int, sizes: list[int], dim: int, turning: bool
) -> None:
    """Of rows of all widths, several segments, few tokens that have no mean."""
    compare(batch, kv_heads, group, new, sizes, 12, dim, turning=turning)


@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_any_shape(data: st.DataObject) -> None:
    """Also where the codes' last tokens are cut off."""
    sizes = data.draw(st.lists(st.integers(1, 1300), min_size=1, max_size=3), label="sizes")
    kept = data.draw(st.integers(1, sum(sizes)), label="kept")
    kv_heads, group, new, more = (
        data.draw(st.integers(low, high), label=name)
        for name, low, high in (("kv_heads", 1, 3), ("group", 1, 4), ("new", 1, 9), ("more", 0, 70))
    )
    masked = new > 1 or data.draw(st.booleans())
    compare(1, kv_heads, group, new, sizes, new + more, 64, kept, masked)


def test_the_same_bits_for_any_number_of_threads() -> None:
    one, _ = coded(2, 1500, 64, 0, True, 0)
    assert one.piece is not None
    query, key, value = (torch.randn(1, heads, 3, 64) for heads in (6, 2, 2))
    mask, before, found = causal(1, 3, 1503, LOWEST), torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(attend(query, key, value, mask, 0.1, first_codes([one.piece], 1500)))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_a_copy_has_the_addresses_of_what_it_holds() -> None:
    one, _ = coded(1, 100, 64, 0, True, 0)
    assert one.piece is not None
    codes = first_codes([one.piece], 100)
    assert copy.deepcopy(one).piece is one.piece
    assert copy.deepcopy(codes) is codes


@pytest.mark.parametrize("dim", [80, 512])
def test_no_kernel(dim: int) -> None:
    one, _ = coded(1, 20, dim, 0, True, 0)
    assert one.piece is None
