"""Rows from their codes, one after the other, from any row on.

Memory is written fastest in the order of rows, and codes lie by tiers: each tier has an open block,
and its next one is opened when those rows have gone; or half of one, since with all tiers' blocks
and what is written in between, levels would leave the smallest cache before they are used.
``tiers`` has for each tier the rows to come, with all of the open block in halves and none of it
otherwise; `AT` where their codes are, and `HERE` how many rows of the open block have gone.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .compiling import bare, part
from .cpu_blocks import hadamard, unpack, unpack_half
from .cpu_rows import row_writer
from .levels import TIERS
from .reference import BLOCK

AT, HERE = 8, 16
HALF = BLOCK // 2
WHOLE = (64, 128, 256)  # rows that are written without leaving the vector registers
WIDTHS = np.array(TIERS, np.int64)


def _writer(dim: int) -> Any:
    plain, turning = row_writer(dim, False), row_writer(dim, True)

    def write(
        count: Any, places: Any, turned: Any, arrays: Any, tiers: Any, levels: Any, space: Any
    ) -> None:
        number, own, token, to = places
        info, codes, scales, mean, out, cos, sin = arrays
        for n in range(count):
            byte = info[np.uint64(number + n)]
            tier = np.int64(byte & 7)
            here = tiers[HERE + tier]
            if here & (HALF - 1) == 0:
                here = open_half(tier, codes, tiers, levels, dim, space)
            tiers[HERE + tier] = here + 1
            first = (tier * HALF + (here & (HALF - 1))) * dim
            scale, there, angle = scales[byte >> 3], to + n * dim, (token + n) * (dim // 2)
            if turned:
                turning(levels, first, scale, mean, own, cos, sin, angle, out, there)
            else:
                plain(levels, first, scale, mean, own, cos, sin, angle, out, there)

    return bare(write, dim)


@bare
def write_rows(
    count: Any, places: Any, turned: Any, arrays: Any, tiers: Any, levels: Any, space: Any, dim: Any
) -> None:
    """Rows of one head, of ``dim`` 64, 128 or 256. ``places``: the first row, the head's mean, the
    first token, where in ``out``; ``arrays``: ``info, codes, scales, mean, out, cos, sin``;
    ``levels`` is room for half a block of each tier, ``space`` for the codes of one."""
    if dim == 64:
        _write64(count, places, turned, arrays, tiers, levels, space)
    elif dim == 128:
        _write128(count, places, turned, arrays, tiers, levels, space)
    else:
        _write256(count, places, turned, arrays, tiers, levels, space)


@bare
def open_half(tier: Any, codes: Any, tiers: Any, levels: Any, dim: Any, space: Any) -> Any:
    """The half of a tier's block that `HERE` is in, or the first of its next one, in the order that
    rows are written from; how many rows have gone before it."""
    here = tiers[HERE + tier] % BLOCK // HALF * HALF
    count, at = min(BLOCK, tiers[tier]), tiers[AT + tier]
    first, size = tier * (HALF * dim), count * dim * WIDTHS[tier] // 8
    x = levels[first : first + min(HALF, count - here) * dim]
    if tier == 0:
        for i in range(np.uint64(x.size)):
            x[i] = 0
    else:
        unpack_half(tier, here // HALF, codes[at : at + size], space[: count * dim], x)
    if here:
        tiers[tier], tiers[AT + tier] = tiers[tier] - count, at + size
    return here


@part
def open_block(
    tier: Any, codes: Any, tiers: Any, levels: Any, dim: Any, wide: Any, h: Any, space: Any,
    found: Any,
) -> None:  # fmt: skip
    """A tier's next block, all of it, in order and transformed; a row has ``wide`` codes."""
    count, at, first = min(BLOCK, tiers[tier]), tiers[AT + tier], tier * (BLOCK * dim)
    size, x = count * wide * WIDTHS[tier] // 8, levels[first : first + count * dim]
    tiers[tier], tiers[AT + tier], tiers[HERE + tier] = tiers[tier] - count, at + size, 0
    if tier == 0:
        x[:] = 0
        return
    packed = codes[at : at + size]
    if wide == dim:
        unpack(tier, packed, space[: count * wide], x)
    else:
        unpack(tier, packed, space[: count * wide], found)
        for r in range(count):
            x[r * dim : (r + 1) * dim] = found[r * wide : r * wide + dim]
    hadamard(h, x, count * (dim // h))


_write64, _write128, _write256 = _writer(64), _writer(128), _writer(256)
