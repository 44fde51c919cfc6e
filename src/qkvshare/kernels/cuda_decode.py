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
    COLUMNS,
    COS,
    MEAN,
    OUT,
    SIN,
    Order,
    address,
    block_at,
    codes_at,
    order,
    scale_of,
    table_of,
    width,
)
from .cuda_tables import dct_on, levels_on
from .cuda_words import word_signs, word_units
from .parts import Part, aligned
from .reference import BLOCK, eights
from .rotation import power_of_two

# So many programs keep every multiprocessor busy; each makes its matrix of ±1 once.
_PROGRAMS = 4096
# For each thread: with more of them fewer programs would run at once, and wait more often.
_REGISTERS = 128


def decode_parts(parts: Sequence[Part]) -> None:
    """`reference.decode_rows` of each part into its ``numbers``, keys turned; all on one GPU.

    Two launches that find where rows lie, then one for each kind of part (keys, values).
    """
    kinds: dict[tuple[int, torch.dtype, bool, bool, int], list[list[int]]] = {}
    for part in parts:
        row, dim, dtype = part.row(), part.numbers.shape[2], part.numbers.dtype
        kind = dim, dtype, part.angles is not None, part.mean is not None, aligned(row)
        if part.numbers.numel():
            kinds.setdefault(kind, []).append(row)
    if not kinds:
        return
    table = table_of([row for alike in kinds.values() for row in alike], parts[0].numbers.device)
    with torch.cuda.device_of(table):  # where Triton launches
        found, first = order(table, max(len(part.info) for part in parts)), 0
        for kind, alike in kinds.items():
            _launch(table, found, first, len(alike), *kind)
            first += len(alike)


def _launch(
    table: Tensor, found: Order, first: int, number: int, dim: int, dtype: torch.dtype,
    turned: bool, shifted: bool, aligned: int,
) -> None:  # fmt: skip
    most, h = found.blocks.shape[1], power_of_two(dim)
    _decode[min(most, max(1, _PROGRAMS // number)), number](
        table, found.rows, found.blocks, found.counts, levels_on(table.device),
        dct_on(table.device, dim), first, most, getattr(tl, str(dtype)[6:]), dim, dim // h, h // 2,
        eights(dim), turned, shifted, aligned, BLOCK, num_warps=8 if dim > 128 else 4,
        enable_fp_fusion=False, maxnreg=_REGISTERS if dim <= 128 else None,
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
def shift_and_turn(
    table, part, one, two, at, head, token,
    DIM: tl.constexpr, TURNED: tl.constexpr, SHIFTED: tl.constexpr, ALIGNED: tl.constexpr,
):  # fmt: skip
    """Columns ``at`` and ``at + DIM / 2`` of rows: mean added, brought to their positions."""
    if SHIFTED:
        mean = address(table, part, MEAN, tl.float32, ALIGNED) + head * DIM + at
        one += tl.load(mean)
        two += tl.load(mean + DIM // 2)
    if TURNED:
        angle = token * (DIM // 2) + at
        cos = tl.load(address(table, part, COS, tl.float32, ALIGNED) + angle)
        sin = tl.load(address(table, part, SIN, tl.float32, ALIGNED) + angle)
        one, two = one * cos - two * sin, two * cos + one * sin
    return one, two


@triton.jit(do_not_specialize=["first", "most"])
def _decode(
    table, rows, blocks, counts, levels, dct, first, most, NUMBER: tl.constexpr,
    DIM: tl.constexpr, M: tl.constexpr, G: tl.constexpr, WIDE: tl.constexpr,
    TURNED: tl.constexpr, SHIFTED: tl.constexpr, ALIGNED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    part = first + tl.program_id(1).to(tl.int64)
    out = address(table, part, OUT, NUMBER, ALIGNED)
    apart = tl.multiple_of(tl.load(table + part * COLUMNS + APART), ALIGNED)
    rows += part * most * 2 * BLOCK
    blocks += part * most * BLOCK_AT
    WORDS: tl.constexpr = M == 1 and G >= 32
    signs = word_signs(G) if WORDS else sign_matrix(G)
    column, step = tl.arange(0, G)[None, :], tl.num_programs(0)
    tier, count, byte, token, owner = block_at(rows, blocks, most, tl.program_id(0), BLOCK)
    for number in range(tl.program_id(0), tl.load(counts + part), step):
        # The next block is asked for before this one is worked on.
        later = block_at(rows, blocks, most, tl.minimum(number + step, most - 1), BLOCK)
        scale, codes = scale_of(table, part, owner)[:, None], codes_at(table, part, byte)
        if WORDS:
            units = word_units(codes, levels, signs, scale, tier, count, G, WIDE, BLOCK)
        else:
            units = block_units(codes, levels, signs, dct, scale, tier, count, M, G, WIDE, BLOCK)
        head, here = owner[:, None] >> 5, tl.arange(0, BLOCK)[:, None] < count
        to = out + head * apart + token[:, None].to(tl.int64) * DIM
        for unit in tl.static_range(M):
            at = unit * G + column
            one, two = shift_and_turn(
                table, part, units[unit], units[unit + M], at, head, token[:, None],
                DIM, TURNED, SHIFTED, ALIGNED,
            )  # fmt: skip
            tl.store(to + at, one.to(NUMBER), here)
            tl.store(to + DIM // 2 + at, two.to(NUMBER), here)
        tier, count, byte, token, owner = later
