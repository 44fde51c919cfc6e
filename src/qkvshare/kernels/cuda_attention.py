"""Attention of one query on codes, on a GPU, in Triton: the numbers never lie in memory.

What lies in memory is 4 to 16 times less than numbers would be, and a query for one token reads
nothing else. Softmax does not mind the order of tokens, so both kernels take blocks as they lie:
the first one makes scores from keys, as `cuda_decode` would make numbers; the second one weighs
the levels of values, split over the blocks. Since rotation is linear, it is undone once, for sums.

Not used by `inject`: it is to be faster than decoding and ``sdpa`` by measurement first.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from .cuda_decode import block_units, shift_and_turn, sign_matrix, unit_levels
from .cuda_order import BLOCK_AT, TOKENS, Order, block_at, codes_at, order, scale_of, size, table_of
from .cuda_tables import dct_on, levels_on
from .cuda_words import word_signs, word_units
from .parts import Part, aligned
from .reference import BLOCK, eights
from .rotation import hadamard, mix, power_of_two

_SPLITS = 64
_PROGRAMS = 512


@dataclass(frozen=True)
class CodedPair:
    """Keys and values of one layer as codes, and where their rows lie; found once for all queries.

    Their ``numbers`` give the shape only, and may be on the device ``meta``.
    """

    keys: Part
    values: Part
    table: Tensor
    order: Order

    @classmethod
    def of(cls, keys: Part, values: Part) -> CodedPair:
        """Two launches."""
        table = table_of([keys.row(), values.row()], keys.numbers.device)
        return cls(keys, values, table, order(table, max(len(keys.info), len(values.info))))

    @property
    def read(self) -> tuple[Tensor, ...]:
        """What both kernels read; part 0 are keys, part 1 are values."""
        return self.table, self.order.rows, self.order.blocks, self.order.counts


def attend(query: Tensor, coded: CodedPair, scaling: float | None = None) -> Tensor:
    """Attention of ``query [heads, dim]`` to all tokens: float32 ``[heads, v_dim]``.

    Query heads that follow each other share a KV head. ``scaling`` is ``1 / √dim`` by default.
    """
    kv_heads, tokens, dim = coded.keys.numbers.shape
    v_dim, heads, device = coded.values.numbers.shape[2], len(query), query.device
    h, v_h = power_of_two(dim), power_of_two(v_dim)
    keys, blocks = coded.keys, coded.order.blocks.shape[1]
    query = query.float() * (1 / math.sqrt(dim) if scaling is None else scaling)
    scores = torch.empty(heads, tokens, device=device)
    _scores[(min(blocks, _PROGRAMS),)](
        *coded.read, levels_on(device), dct_on(device, dim), query, scores, blocks,
        heads // kv_heads, dim, dim // h, h // 2, eights(dim), keys.angles is not None,
        keys.mean is not None, aligned(keys.row()), BLOCK,
    )  # fmt: skip
    weights, splits = scores.softmax(-1), min(blocks, _SPLITS)
    sums = torch.empty(splits, heads, v_dim, device=device)
    _weigh[splits, 2 * v_dim // v_h](
        *coded.read, levels_on(device), weights, sums, heads, blocks, heads // kv_heads,
        max(16, triton.next_power_of_2(heads)), v_dim, v_h // 2, eights(v_dim), BLOCK,
    )  # fmt: skip
    out = mix(hadamard(sums.sum(0)), inverse=True)
    if coded.values.mean is None:
        return out
    mean = torch.as_tensor(coded.values.mean)
    return out + mean.repeat_interleave(heads // kv_heads, 0)


@triton.jit(do_not_specialize=["most"])
def _scores(
    table, rows, blocks, counts, levels, dct, query, scores, most,
    GROUP: tl.constexpr, DIM: tl.constexpr, M: tl.constexpr, G: tl.constexpr, WIDE: tl.constexpr,
    TURNED: tl.constexpr, SHIFTED: tl.constexpr, ALIGNED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """``scores [heads, tokens]``, block by block."""
    column, tokens = tl.arange(0, G)[None, :], size(table, 0, TOKENS)
    WORDS: tl.constexpr = M == 1 and G >= 32
    signs = word_signs(G) if WORDS else sign_matrix(G)
    for number in range(tl.program_id(0), tl.load(counts), tl.num_programs(0)):
        tier, count, byte, token, owner = block_at(rows, blocks, most, number, BLOCK)
        scale, codes = scale_of(table, 0, owner)[:, None], codes_at(table, 0, byte)
        if WORDS:
            units = word_units(codes, levels, signs, scale, tier, count, G, WIDE, BLOCK)
        else:
            units = block_units(codes, levels, signs, dct, scale, tier, count, M, G, WIDE, BLOCK)
        head, here, turned = owner >> 5, tl.arange(0, BLOCK) < count, ()
        for unit in tl.static_range(M):
            one, two = shift_and_turn(
                table, 0, units[unit], units[unit + M], unit * G + column, head[:, None],
                token[:, None], DIM, TURNED, SHIFTED, ALIGNED,
            )  # fmt: skip
            turned = turned + (one, two)  # type: ignore  # noqa: RUF005
        for other in tl.static_range(GROUP):
            asked = head * GROUP + other
            score = tl.zeros((BLOCK,), tl.float32)
            for unit in tl.static_range(M):
                at = query + asked[:, None] * DIM + unit * G + column
                score += tl.sum(turned[2 * unit] * tl.load(at), 1)
                score += tl.sum(turned[2 * unit + 1] * tl.load(at + DIM // 2), 1)
            tl.store(scores + asked * tokens + token, score, here)


@triton.jit(do_not_specialize=["heads", "most"])
def _weigh(
    table, rows, blocks, counts, levels, weights, sums, heads, most,
    GROUP: tl.constexpr, HEADS: tl.constexpr, DIM: tl.constexpr, G: tl.constexpr,
    WIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One unit of ``sums [splits, heads, DIM]``: levels times scale times weight, added up."""
    split, unit = tl.program_id(0), tl.program_id(1)
    rows += most * 2 * BLOCK
    blocks += most * BLOCK_AT
    tokens = size(table, 1, TOKENS)
    asked = tl.arange(0, HEADS)[:, None]
    total = tl.zeros((HEADS, G), tl.float32)
    for number in range(split, tl.load(counts + 1), tl.num_programs(0)):
        tier, count, byte, token, owner = block_at(rows, blocks, most, number, BLOCK)
        scale, codes = scale_of(table, 1, owner), codes_at(table, 1, byte)
        head, here = owner >> 5, tl.arange(0, BLOCK) < count
        mine = (asked // GROUP == head[None, :]) & here[None, :] & (asked < heads)
        weight = tl.load(weights + asked * tokens + token[None, :], mine, 0) * scale[None, :]
        numbers = unit_levels(codes, levels, tier, count, unit, G, WIDE, BLOCK).to(tl.float32)
        # Levels are exact in TF32; weights are taken as three numbers of it.
        total += tl.dot(weight, numbers, input_precision="tf32x3")
    to = sums + (split * heads + asked) * DIM + unit * G + tl.arange(0, G)[None, :]
    tl.store(to, total, asked < heads)
