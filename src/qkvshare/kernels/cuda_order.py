"""Where each row's codes lie, found on a GPU, in Triton: two launches for any number of parts.

Codes lie by width, in blocks of `BLOCK` rows, so where a row's lie depends on the widths of all
before it. Rows are counted in chunks; then every chunk knows where its own begin, and writes down
for each block what it has (`BLOCK_AT`) and for each place in the order of codes whose it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from .parts import Part
from .reference import BLOCK

CHUNK = 1024  # rows

# What a kernel is told of a part, see `Part.row`, as integers of 64 bits.
INFO = tl.constexpr(0)
CODES = tl.constexpr(1)
SCALES = tl.constexpr(2)
MEAN = tl.constexpr(3)
OUT = tl.constexpr(4)  # or what is encoded
COS = tl.constexpr(5)
SIN = tl.constexpr(6)
ROWS = tl.constexpr(7)
TOKENS = tl.constexpr(8)
APART = tl.constexpr(9)  # numbers from the beginning of a head to that of the next
WIDE = tl.constexpr(10)  # codes of a row
COLUMNS = tl.constexpr(11)

# Of each block, as integers of 64 bits: tier, rows, place of its first row, and of its first byte.
BLOCK_AT = tl.constexpr(4)


@dataclass(frozen=True)
class Order:
    """Of several parts.

    Attributes:
        rows: rows of each part in the order of their codes, int32 ``[parts, most rows]``.
        blocks: see `BLOCK_AT`, int64 ``[parts, most blocks, 4]``.
        counts: how many blocks a part has, int32 ``[parts]``.
    """

    rows: Tensor
    blocks: Tensor
    counts: Tensor


def table_of(parts: Sequence[Part]) -> Tensor:
    """What kernels read of ``parts``, int64 ``[parts, 11]``, on their GPU."""
    table, device = torch.tensor([part.row() for part in parts]), parts[0].numbers.device
    return table if device.type == "cpu" else table.pin_memory().to(device, non_blocking=True)


def order(parts: Sequence[Part], table: Tensor) -> Order:
    """Two launches."""
    device, number = table.device, len(parts)
    rows = max(len(part.info) for part in parts)
    # A tier may end with a block that is not full.
    most, chunks = rows // BLOCK + 8, triton.cdiv(rows, CHUNK)
    counts = torch.empty(number, chunks, 8, dtype=torch.int32, device=device)
    found = Order(
        torch.empty(number, rows, dtype=torch.int32, device=device),
        torch.empty(number, most, BLOCK_AT.value, dtype=torch.int64, device=device),
        torch.empty(number, dtype=torch.int32, device=device),
    )
    _count[chunks, number](table, counts, CHUNK)
    _order[chunks, number](
        table, counts, found.rows, found.blocks, found.counts, rows, most, CHUNK, BLOCK
    )
    return found


@triton.jit
def address(table, part, column, kind: tl.constexpr):
    """A tensor of ``part``."""
    return tl.load(table + part * COLUMNS + column).to(tl.pointer_type(kind))


@triton.jit
def size(table, part, column):
    """A size of ``part``, in 32 bits."""
    return tl.load(table + part * COLUMNS + column).to(tl.int32)


@triton.jit
def width(tier):
    """Bits of a code: `levels.TIERS`."""
    return tier + (tier == 7).to(tl.int32)


@triton.jit
def _tiers(table, part, chunk, CHUNK: tl.constexpr):
    """Rows of a chunk and their tiers, 8 behind the end."""
    at = chunk * CHUNK + tl.arange(0, CHUNK)
    byte = tl.load(address(table, part, INFO, tl.uint8) + at, at < size(table, part, ROWS), 8)
    return at, tl.where(at < size(table, part, ROWS), byte & 7, 8).to(tl.int32)


@triton.jit
def _count(table, counts, CHUNK: tl.constexpr):
    chunk, part = tl.program_id(0), tl.program_id(1)
    _, tiers = _tiers(table, part, chunk, CHUNK)
    to = counts + (part * tl.num_programs(0) + chunk) * 8
    for tier in tl.static_range(8):
        tl.store(to + tier, tl.sum((tiers == tier).to(tl.int32)))


@triton.jit
def _order(
    table, counts, rows, blocks, block_counts, most_rows, most_blocks,
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
    if chunk == 0:
        tl.store(block_counts + part, tl.sum(several))
    bits = total.to(tl.int64) * width(every) * size(table, part, WIDE)
    first_row = tl.cumsum(total, 0) - total
    first_block = tl.cumsum(several, 0) - several
    first_byte = (tl.cumsum(bits, 0) - bits) // 8
    at, tiers = _tiers(table, part, chunk, CHUNK)
    rows += part.to(tl.int64) * most_rows
    blocks += part.to(tl.int64) * most_blocks * BLOCK_AT
    for tier in tl.static_range(8):
        mine, own = tiers == tier, every == tier
        place = tl.sum(tl.where(own, before, 0)) + tl.cumsum(mine.to(tl.int32), 0) - 1
        start = tl.sum(tl.where(own, first_row, 0))
        tl.store(rows + start + place, at, mine)
        opens = mine & (place % BLOCK == 0)
        to = blocks + (tl.sum(tl.where(own, first_block, 0)) + place // BLOCK) * BLOCK_AT
        left = tl.sum(tl.where(own, total, 0)) - place
        row = tl.sum(tl.where(own, width(every), 0)) * size(table, part, WIDE) // 8  # bytes
        byte = tl.sum(tl.where(own, first_byte, 0)) + place.to(tl.int64) * row
        tl.store(to, (place * 0 + tier).to(tl.int64), opens)
        tl.store(to + 1, tl.minimum(left, BLOCK).to(tl.int64), opens)
        tl.store(to + 2, (start + place).to(tl.int64), opens)
        tl.store(to + 3, byte, opens)
