"""Decode rows on a GPU, in Triton: levels, Hadamard, DCT, scale, mean and RoPE at once.

A program takes one block after the other: all its rows have one width, and their codes lie
together. Columns are taken in *units* of half a Hadamard transform ``h``, so that a pair which RoPE
turns, ``(i, i + dim / 2)``, lies in two units at the same place. One step of the transform adds and
subtracts the two units of a run; the others are one product with a matrix of ±1, which tensor
cores do exactly: levels and sums of two are whole numbers below 2048 (float16), sums of all are
below 2**24 (float32). All that follows is in the order of the reference, without fused additions.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from .cuda_order import (
    APART,
    BLOCK_AT,
    CODES,
    COLUMNS,
    COS,
    INFO,
    MEAN,
    OUT,
    SCALES,
    SIN,
    TOKENS,
    Order,
    address,
    order,
    size,
    table_of,
    width,
)
from .cuda_tables import dct_on, levels_on
from .parts import Part
from .reference import BLOCK, eights
from .rotation import power_of_two

# So many programs keep every multiprocessor busy; each makes its matrix of ±1 once.
_PROGRAMS = 1024


def decode_parts(parts: Sequence[Part]) -> None:
    """`reference.decode_rows` of each part into its ``numbers``, keys turned; all on one GPU.

    Two launches that find where rows lie, then one for each kind of part (keys, values).
    """
    kinds: dict[tuple[int, torch.dtype, bool, bool, int], list[Part]] = {}
    for part in parts:
        dim, dtype = part.numbers.shape[2], part.numbers.dtype
        kind = dim, dtype, part.angles is not None, part.mean is not None, part.aligned
        if part.numbers.numel():
            kinds.setdefault(kind, []).append(part)
    parts = [part for alike in kinds.values() for part in alike]
    if not parts:
        return
    table, first = table_of(parts), 0
    with torch.cuda.device_of(table):  # where Triton launches
        whole = order(parts, table)
        for kind, alike in kinds.items():
            at = slice(first, first + len(alike))
            first = at.stop
            _launch(table[at], Order(whole.rows[at], whole.blocks[at], whole.counts[at]), *kind)


def _launch(
    table: Tensor, found: Order, dim: int, dtype: torch.dtype, turned: bool, shifted: bool,
    aligned: int,
) -> None:  # fmt: skip
    number, most, _ = found.blocks.shape
    h = power_of_two(dim)
    _decode[min(most, max(1, _PROGRAMS // number)), number](
        table, found.rows, found.blocks, found.counts, levels_on(table.device),
        dct_on(table.device, dim), found.rows.shape[1], most, getattr(tl, str(dtype)[6:]),
        dim, dim // h, h // 2, eights(dim), turned, shifted, aligned, BLOCK,
        num_warps=8 if dim >= 128 else 4, enable_fp_fusion=False,
    )  # fmt: skip


@triton.jit
def sign_matrix(G: tl.constexpr):
    """The Hadamard transform of ``G`` numbers (128 at most), float16 ``[G, G]``."""
    both = tl.arange(0, G)[:, None] & tl.arange(0, G)[None, :]
    both ^= both >> 4
    both ^= both >> 2
    both ^= both >> 1
    return (1 - 2 * (both & 1)).to(tl.float16)


@triton.jit
def _plane(
    codes, low, code, bits, count, row, at,
    PLANE: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Add the plane of ``PLANE`` bits, if there is one, to ``code``; what comes behind it."""
    if (bits & PLANE) != 0:
        nbytes = count * WIDE * PLANE // 8
        # Most blocks are full, and spare themselves the division.
        turn = row // (4 * PLANE) + at * 0 if count == BLOCK else at // nbytes
        byte = tl.load(codes + at - turn * nbytes, row < count, 0).to(tl.int32)
        code |= ((byte >> (turn * PLANE)) & ((1 << PLANE) - 1)) << low
        codes += nbytes
        low += PLANE
    return codes, low, code


@triton.jit
def unit_levels(
    codes, levels, tier, count, unit, G: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr
):
    """Levels of one unit of a block that begins at ``codes``, float16 ``[BLOCK, G]``."""
    row = tl.arange(0, BLOCK)[:, None]
    at = row * WIDE + unit * G + tl.arange(0, G)[None, :]
    bits, code = width(tier), tl.zeros((BLOCK, G), tl.int32)
    low = bits * 0
    for w in tl.static_range(3, -1, -1):
        codes, low, code = _plane(codes, low, code, bits, count, row, at, 1 << w, WIDE, BLOCK)
    return tl.load(levels + tier * 256 + code)


@triton.jit
def hadamard(x, signs, G: tl.constexpr):
    """``x [rows, G]`` times `sign_matrix`, exact, float32."""
    if G >= 16:
        return tl.dot(x, signs)
    wide = x.to(tl.float32)[:, :, None] * signs.to(tl.float32)[None, :, :]
    return tl.sum(wide, 1)


@triton.jit
def block_units(
    codes, levels, signs, dct, scale, tier, count,
    M: tl.constexpr, G: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """All ``2 · M`` units of a block's rows, rotated back and scaled, float32 ``[BLOCK, G]``."""
    sums = ()
    for run in tl.static_range(M):
        one = unit_levels(codes, levels, tier, count, 2 * run, G, WIDE, BLOCK)
        two = unit_levels(codes, levels, tier, count, 2 * run + 1, G, WIDE, BLOCK)
        # Triton knows no starred tuples.
        sums = sums + (hadamard(one + two, signs, G) * scale,)  # type: ignore  # noqa: RUF005
        sums = sums + (hadamard(one - two, signs, G) * scale,)  # type: ignore  # noqa: RUF005
    if M == 1:
        return sums
    units = ()
    for unit in tl.static_range(2 * M):
        total = tl.load(dct + unit // 2) * sums[unit % 2]
        for other in tl.static_range(1, M):
            total += tl.load(dct + other * M + unit // 2) * sums[2 * other + unit % 2]
        units = units + (total,)  # type: ignore  # noqa: RUF005
    return units


@triton.jit
def block_rows(table, part, rows, block, BLOCK: tl.constexpr):
    """A block's tier, how many rows it has and where its codes begin; then of each row the scale,
    head and token, and whether there is one: ``[BLOCK]``."""
    tier, count = tl.load(block).to(tl.int32), tl.load(block + 1).to(tl.int32)
    here, tokens = tl.arange(0, BLOCK) < count, size(table, part, TOKENS)
    row = tl.load(rows + tl.load(block + 2) + tl.arange(0, BLOCK), here, 0)
    byte = tl.load(address(table, part, INFO, tl.uint8) + row, here, 0)
    scale = tl.load(address(table, part, SCALES, tl.float32) + (byte >> 3))
    codes = address(table, part, CODES, tl.uint8) + tl.load(block + 3)
    return tier, count, codes, scale, row // tokens, row % tokens, here


@triton.jit
def shift_and_turn(
    table, part, one, two, at, head, token, here,
    DIM: tl.constexpr, TURNED: tl.constexpr, SHIFTED: tl.constexpr, ALIGNED: tl.constexpr,
):  # fmt: skip
    """Columns ``at`` and ``at + DIM / 2`` of rows: mean added, brought to their positions."""
    if SHIFTED:
        mean = tl.multiple_of(address(table, part, MEAN, tl.float32), ALIGNED) + head * DIM + at
        one += tl.load(mean, here, 0)
        two += tl.load(mean + DIM // 2, here, 0)
    if TURNED:
        angle = token * (DIM // 2) + at
        cos = tl.multiple_of(address(table, part, COS, tl.float32), ALIGNED) + angle
        sin = tl.multiple_of(address(table, part, SIN, tl.float32), ALIGNED) + angle
        cos, sin = tl.load(cos, here, 0), tl.load(sin, here, 0)
        one, two = one * cos - two * sin, two * cos + one * sin
    return one, two


@triton.jit
def _decode(
    table, rows, blocks, counts, levels, dct, most_rows, most_blocks, NUMBER: tl.constexpr,
    DIM: tl.constexpr, M: tl.constexpr, G: tl.constexpr, WIDE: tl.constexpr,
    TURNED: tl.constexpr, SHIFTED: tl.constexpr, ALIGNED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    part = tl.program_id(1).to(tl.int64)
    out = tl.multiple_of(address(table, part, OUT, NUMBER), ALIGNED)
    apart = tl.multiple_of(tl.load(table + part * COLUMNS + APART), ALIGNED)
    rows += part * most_rows
    blocks += part * most_blocks * BLOCK_AT
    signs, column = sign_matrix(G), tl.arange(0, G)[None, :]
    for number in range(tl.program_id(0), tl.load(counts + part), tl.num_programs(0)):
        tier, count, codes, scale, head, token, here = block_rows(
            table, part, rows, blocks + number * BLOCK_AT, BLOCK
        )
        scale, head, token, here = scale[:, None], head[:, None], token[:, None], here[:, None]
        units = block_units(codes, levels, signs, dct, scale, tier, count, M, G, WIDE, BLOCK)
        to = out + head * apart + token.to(tl.int64) * DIM
        for unit in tl.static_range(M):
            at = unit * G + column
            one, two = shift_and_turn(
                table, part, units[unit], units[unit + M], at, head, token, here,
                DIM, TURNED, SHIFTED, ALIGNED,
            )  # fmt: skip
            tl.store(to + at, one.to(NUMBER), here)
            tl.store(to + DIM // 2 + at, two.to(NUMBER), here)
