"""Where each row's codes lie, found on a GPU, in Triton: two launches for any number of parts.

Codes lie by width, in blocks of `BLOCK` rows, so where a row's lie depends on the widths of all
before it. Rows are counted in chunks; then every chunk knows where its own begin, and writes down
for each block what it has (`BLOCK_AT`) and for each of its rows whose it is. Kernels that follow
find all of that by a block's number, without waiting for one answer to ask the next.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from .reference import BLOCK

CHUNK = 1024  # rows, below 2**16

# What a kernel is told of a part, see `Part.row`, as integers of 64 bits; one is left out, since
# tables of which each row begins at a multiple of 16 bytes let kernels move many numbers at once.
INFO = tl.constexpr(0)
CODES = tl.constexpr(1)
SCALES = tl.constexpr(2)
MEAN = tl.constexpr(3)
OUT = tl.constexpr(4)
COS = tl.constexpr(5)
SIN = tl.constexpr(6)
ROWS = tl.constexpr(7)
TOKENS = tl.constexpr(8)
APART = tl.constexpr(9)  # numbers from the beginning of a head to that of the next
WIDE = tl.constexpr(10)  # codes of a row
COLUMNS = tl.constexpr(12)

# Of each block, as integers of 64 bits: tier, rows, and the place of its first byte.
BLOCK_AT = tl.constexpr(3)


@dataclass(frozen=True)
class Order:
    """Of several parts.

    Attributes:
        rows: of each row of a block its token, and ``head << 5 | scale``, int32
            ``[parts, 2, most blocks · BLOCK]``.
        blocks: see `BLOCK_AT`, int64 ``[parts, most blocks, 3]``.
        counts: how many blocks a part has, int32 ``[parts]``.
    """

    rows: Tensor
    blocks: Tensor
    counts: Tensor


def table_of(rows: Sequence[list[int]], device: torch.device) -> Tensor:
    """`Part.row` of each part, int64 ``[parts, 12]``, on their GPU."""
    table = torch.tensor([(*row, 0) for row in rows])
    return table if device.type == "cpu" else table.pin_memory().to(device, non_blocking=True)


def order(table: Tensor, rows: int) -> Order:
    """Two launches; ``rows`` are the most that a part has."""
    device, number = table.device, len(table)
    # A tier may end with a block that is not full.
    most, chunks = rows // BLOCK + 8, triton.cdiv(rows, CHUNK)
    counts = torch.empty(number, chunks, 8, dtype=torch.int32, device=device)
    found = Order(
        torch.empty(number, 2, most * BLOCK, dtype=torch.int32, device=device),
        torch.empty(number, most, BLOCK_AT.value, dtype=torch.int64, device=device),
        torch.empty(number, dtype=torch.int32, device=device),
    )
    _count[chunks, number](table, counts, CHUNK)
    _order[chunks, number](
        table, counts, found.rows, found.blocks, found.counts, most, CHUNK, BLOCK
    )
    return found


@triton.jit
def address(table, part, column, kind: tl.constexpr, aligned: tl.constexpr = 1):
    """A tensor of ``part``, which begins at a multiple of ``aligned`` bytes.

    Many numbers move at once only where the compiler knows that. It believes it of what is added to
    an argument, not of an address that was read, so addresses are taken from ``table`` on.
    """
    SIZE: tl.constexpr = kind.primitive_bitwidth // 8
    apart = (tl.load(table + part * COLUMNS + column) - table.to(tl.int64)) // SIZE
    apart = tl.multiple_of(apart, aligned // SIZE if aligned > SIZE else 1)
    return tl.cast(table, tl.pointer_type(kind)) + apart


@triton.jit
def width(tier):
    """Bits of a code: `levels.TIERS`."""
    return tier + (tier == 7).to(tl.int32)


@triton.jit
def _tiers(table, part, chunk, CHUNK: tl.constexpr):
    """Rows of a chunk, their scales, and their tiers, 8 behind the end."""
    at = chunk * CHUNK + tl.arange(0, CHUNK)
    here = at < tl.load(table + part * COLUMNS + ROWS)
    byte = tl.load(address(table, part, INFO, tl.uint8) + at, here, 0).to(tl.int32)
    return at, byte >> 3, tl.where(here, byte & 7, 8)


@triton.jit
def _count(table, counts, CHUNK: tl.constexpr):
    chunk, part = tl.program_id(0), tl.program_id(1)
    _, _, tiers = _tiers(table, part, chunk, CHUNK)
    to = counts + (part * tl.num_programs(0) + chunk) * 8
    for tier in tl.static_range(8):
        tl.store(to + tier, tl.sum((tiers == tier).to(tl.int32)))


# A size that comes without a property of its own, so that no kernel is compiled twice.
@triton.jit(do_not_specialize=["most"])
def _order(
    table, counts, rows, blocks, block_counts, most,
    CHUNK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    chunk, part, chunks = tl.program_id(0), tl.program_id(1), tl.num_programs(0)
    every = tl.arange(0, 8)
    total, before = tl.zeros((8,), tl.int32), tl.zeros((8,), tl.int32)
    for first in range(0, chunks, 64):
        at = first + tl.arange(0, 64)
        count = tl.load(
            counts + (part * chunks + at)[:, None] * 8 + every, (at < chunks)[:, None], 0
        )
        total += tl.sum(count, 0)
        before += tl.sum(tl.where((at < chunk)[:, None], count, 0), 0)
    several = (total + BLOCK - 1) // BLOCK
    row_bytes = width(every) * tl.load(table + part * COLUMNS + WIDE).to(tl.int32) // 8
    some = total.to(tl.int64) * row_bytes
    first_block, first_byte = tl.cumsum(several, 0) - several, tl.cumsum(some, 0) - some
    rows += part.to(tl.int64) * most * 2 * BLOCK
    blocks += part.to(tl.int64) * most * BLOCK_AT
    if chunk == 0:
        tl.store(block_counts + part, tl.sum(several))
        # Rows that are missing in the last block of a tier.
        to = (first_block * BLOCK + total)[:, None] + tl.arange(0, BLOCK)[None, :]
        missing = to < ((first_block + several) * BLOCK)[:, None]
        tl.store(rows + to, to * 0, missing)
        tl.store(rows + most * BLOCK + to, to * 0, missing)
    at, scales, tiers = _tiers(table, part, chunk, CHUNK)
    tokens = tl.load(table + part * COLUMNS + TOKENS).to(tl.int32)
    # How many rows of its tier come before each: four counts of 16 bits are summed at once.
    turn = (tiers & 3).to(tl.int64) * 16
    one = tl.full((CHUNK,), 1, tl.int64) << turn
    low = tl.cumsum(tl.where(tiers < 4, one, 0), 0)
    high = tl.cumsum(tl.where((tiers >= 4) & (tiers < 8), one, 0), 0)
    place = ((tl.where(tiers < 4, low, high) >> turn) & 65535).to(tl.int32) - 1
    start, byte, row, left = place * 0, place.to(tl.int64) * 0, place * 0, place * 0
    for tier in tl.static_range(8):
        mine, own = tiers == tier, every == tier
        place += tl.where(mine, tl.sum(tl.where(own, before, 0)), 0)
        start += tl.where(mine, tl.sum(tl.where(own, first_block, 0)), 0)
        byte += tl.where(mine, tl.sum(tl.where(own, first_byte, 0)), 0)
        row += tl.where(mine, tl.sum(tl.where(own, row_bytes, 0)), 0)
        left += tl.where(mine, tl.sum(tl.where(own, total, 0)), 0)
    here = tiers < 8
    to = rows + start * BLOCK + place
    tl.store(to, at % tokens, here)
    tl.store(to + most * BLOCK, at // tokens << 5 | scales, here)
    opens = here & (place % BLOCK == 0)
    to = blocks + (start + place // BLOCK) * BLOCK_AT
    tl.store(to, tiers.to(tl.int64), opens)
    tl.store(to + 1, tl.minimum(left - place, BLOCK).to(tl.int64), opens)
    tl.store(to + 2, byte + place.to(tl.int64) * row, opens)
