"""Decode rows on a GPU, in Triton: levels, Hadamard, scale, mean and RoPE at once.

A program takes one block after the other: all its rows have one width, and their codes lie
together. A row is taken in two *halves* of ``G`` numbers, so that a pair which RoPE rotates,
``(i, i + dim / 2)``, lies in both at the same place. The Hadamard transform is a product with a
matrix of ±1, which tensor cores do exactly: levels are whole numbers below 2048 (float16), sums of
all are below 2**24 (float32). What follows is in the order of the reference, without fused
additions.

A word of 32 bits holds the codes of four neighbours, a byte each, so that shifts and masks do four
at once, and words of a full block are read many at a time. The four bytes give four matrices of
levels, of every fourth column each; the transform is the sum of their products with every fourth
row of the matrix of ±1, and columns need not be brought in line again.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from .cuda import DIMS
from .cuda_order import (
    APART,
    BLOCK_AT,
    CODES,
    COLUMNS,
    COS,
    MEAN,
    OUT,
    SCALES,
    SIN,
    Order,
    address,
    order,
    table_of,
    width,
)
from .levels import TIERS
from .levels import levels as levels_of
from .parts import Part, aligned
from .reference import BLOCK

# So many programs keep every multiprocessor busy; each makes its matrix of ±1 once.
_PROGRAMS = 4096
# For each thread: with more of them fewer programs would run at once, and wait more often.
_REGISTERS = 128


@cache
def levels_on(device: torch.device) -> Tensor:
    """Levels by tier, float16 ``[8, 256]``: whole numbers up to 1020, so exact."""
    table = torch.zeros(8, 256, dtype=torch.float16)
    for tier, bits in enumerate(TIERS[1:], 1):
        table[tier, : 2**bits] = torch.from_numpy(levels_of(bits))
    return table.to(device)


def decode_parts(parts: Sequence[Part]) -> None:
    """`reference.decode_rows` of each part into its ``numbers``, keys rotated; all on one GPU.

    Two launches that find where rows lie, then one for each kind of part (keys, values). Raises
    `ValueError` for rows of other lengths than `DIMS`.
    """
    kinds: dict[tuple[int, torch.dtype, bool, bool, int], list[list[int]]] = {}
    for part in parts:
        row, dim, dtype = part.row(), part.numbers.shape[2], part.numbers.dtype
        if dim not in DIMS:
            raise ValueError(
                f"no kernel on a GPU decodes rows of {dim} numbers, only of {DIMS}. Decode them on "
                "a processor, see `Packed.decodes_on`."
            )
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
    rotated: bool, shifted: bool, aligned: int,
) -> None:  # fmt: skip
    most = found.blocks.shape[1]
    _decode[min(most, max(1, _PROGRAMS // number)), number](
        table, found.rows, found.blocks, found.counts, levels_on(table.device), first, most,
        getattr(tl, str(dtype)[6:]), dim, dim // 2, max(64, dim // 2), rotated, shifted, aligned,
        BLOCK, num_warps=8 if dim > 128 else 4, enable_fp_fusion=False,
        maxnreg=_REGISTERS if dim <= 128 else None,
    )  # fmt: skip


@triton.jit(do_not_specialize=["first", "most"])
def _decode(
    table, rows, blocks, counts, levels, first, most, NUMBER: tl.constexpr, DIM: tl.constexpr,
    G: tl.constexpr, H: tl.constexpr, ROTATED: tl.constexpr, SHIFTED: tl.constexpr,
    ALIGNED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Blocks of part ``first`` and those behind it; codes of ``H`` columns are read at once."""
    part = first + tl.program_id(1).to(tl.int64)
    out = address(table, part, OUT, NUMBER, ALIGNED)
    apart = tl.multiple_of(tl.load(table + part * COLUMNS + APART), ALIGNED)
    rows += part * most * 2 * BLOCK
    blocks += part * most * BLOCK_AT
    signs = ()
    for n in tl.static_range(4 * (H // G)):
        # Triton knows no starred tuples.
        signs = signs + (_signs(n % 4, n // 4 * G, H, G),)  # type: ignore  # noqa: RUF005
    at = tl.arange(0, G)[None, :]
    for number in range(tl.program_id(0), tl.load(counts + part), tl.num_programs(0)):
        block, row = blocks + number * BLOCK_AT, rows + number * BLOCK + tl.arange(0, BLOCK)
        tier, count = tl.load(block).to(tl.int32), tl.load(block + 1).to(tl.int32)
        token, owner = tl.load(row)[:, None], tl.load(row + most * BLOCK)[:, None]
        scale = tl.load(address(table, part, SCALES, tl.float32) + (owner & 31))
        codes = address(table, part, CODES, tl.uint8) + tl.load(block + 2)
        one, two = _halves(codes, levels, signs, tier, count, G, H, DIM, BLOCK)
        one, two = one * scale, two * scale
        head, here = owner >> 5, tl.arange(0, BLOCK)[:, None] < count
        if SHIFTED:
            mean = address(table, part, MEAN, tl.float32, ALIGNED) + head * DIM + at
            one += tl.load(mean)
            two += tl.load(mean + G)
        if ROTATED:
            cos = tl.load(address(table, part, COS, tl.float32, ALIGNED) + token * G + at)
            sin = tl.load(address(table, part, SIN, tl.float32, ALIGNED) + token * G + at)
            one, two = one * cos - two * sin, two * cos + one * sin
        to = out + head * apart + token.to(tl.int64) * DIM + at
        tl.store(to, one.to(NUMBER), here)
        tl.store(to + G, two.to(NUMBER), here)


@triton.jit
def _signs(start, first, H: tl.constexpr, G: tl.constexpr):
    """Rows ``start, start + 4 ...`` of the Hadamard transform of ``H`` numbers, ``G`` columns from
    ``first`` on: float16 ``[H / 4, G]``."""
    row, column = start + 4 * tl.arange(0, H // 4), first + tl.arange(0, G)
    both = row[:, None] & column[None, :]
    both ^= both >> 4
    both ^= both >> 2
    both ^= both >> 1
    return (1 - 2 * (both & 1)).to(tl.float16)


@triton.jit
def _halves(
    codes, levels, signs, tier, count,
    G: tl.constexpr, H: tl.constexpr, DIM: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Both halves of a block's rows, rotated back, float32 ``[BLOCK, G]``."""
    bits, levels = width(tier), levels + tier * 256
    low, high = tl.zeros((BLOCK, G), tl.float32), tl.zeros((BLOCK, G), tl.float32)
    first = _words(codes, bits, count, 0, H, DIM, BLOCK)
    if H == DIM:  # a product takes 16 rows of ±1 at least
        for turn in tl.static_range(4):
            found = tl.load(levels + ((first >> (8 * turn)) & 255))
            low = tl.dot(found, signs[turn], low)
            high = tl.dot(found, signs[4 + turn], high)
    else:
        second = _words(codes, bits, count, G, H, DIM, BLOCK)
        for turn in tl.static_range(4):
            low = tl.dot(tl.load(levels + ((first >> (8 * turn)) & 255)), signs[turn], low)
            high = tl.dot(tl.load(levels + ((second >> (8 * turn)) & 255)), signs[turn], high)
        low, high = low + high, low - high
    return low, high


@triton.jit
def _words(codes, bits, count, first, H: tl.constexpr, DIM: tl.constexpr, BLOCK: tl.constexpr):
    """Codes of ``H`` columns from ``first`` on, uint32 ``[BLOCK, H / 4]``."""
    row, at = tl.arange(0, BLOCK)[:, None], first // 4 + tl.arange(0, H // 4)[None, :]
    code, low = tl.zeros((BLOCK, H // 4), tl.uint32), (bits * 0).to(tl.uint32)
    if (count == BLOCK) & (codes.to(tl.int64) % 16 == 0):
        words = tl.cast(codes, tl.pointer_type(tl.uint32))
        for w in tl.static_range(3, -1, -1):
            words, low, code = _plane(words, low, code, bits, row, at, 1 << w, DIM)
    else:
        for w in tl.static_range(3, -1, -1):
            codes, low, code = _bytes(codes, low, code, bits, count, row, at, 1 << w, DIM)
    return code


@triton.jit
def _plane(words, low, code, bits, row, at, PLANE: tl.constexpr, DIM: tl.constexpr):
    """Add the plane of ``PLANE`` bits of a full block, if there is one, to ``code``."""
    if (bits & PLANE) != 0:
        slot = words + row % (4 * PLANE) * (DIM // 4) + at
        word = tl.load(tl.multiple_of(slot, (16, 16)))
        turn = (row // (4 * PLANE) * PLANE).to(tl.uint32)
        code |= ((word >> turn) & (0x01010101 * ((1 << PLANE) - 1))) << low
        words += PLANE * DIM
        low += PLANE
    return words, low, code


@triton.jit
def _bytes(codes, low, code, bits, count, row, at, PLANE: tl.constexpr, DIM: tl.constexpr):
    """The same of any block, byte by byte."""
    if (bits & PLANE) != 0:
        nbytes = count * DIM * PLANE // 8
        for turn in tl.static_range(4):
            number = row * DIM + 4 * at + turn
            byte = tl.load(codes + number % nbytes, row < count, 0).to(tl.uint32)
            byte = (byte >> (number // nbytes * PLANE).to(tl.uint32)) & ((1 << PLANE) - 1)
            code |= byte << (low + 8 * turn)
        codes += nbytes
        low += PLANE
    return codes, low, code
