"""Encode rows on a processor, in Numba: the same bits as the reference."""

from __future__ import annotations

from typing import Any

import numpy as np

from .compiling import kernel, part
from .cpu_blocks import hadamard, pack
from .cpu_counts import AT_ONCE, counter
from .levels import TIERS, thresholds
from .reference import BLOCK

_WIDTHS = np.array(TIERS, np.int64)


# Numba counts references to arrays at every call, which takes longer than a row: so a part has a
# block of rows to do.
def _coder(tier: int) -> Any:
    """``f(x, mine, info, scales, dim, codes)``: rows ``mine`` of ``x`` on the nearest levels of a
    tier, as many as there are thresholds below."""
    count = counter(thresholds(TIERS[tier]).tolist())

    def code(x: Any, mine: Any, info: Any, scales: Any, dim: Any, codes: Any) -> None:
        whole, to, wide = dim // AT_ONCE * AT_ONCE, 0, -(-dim // 8) * 8
        last, found = np.zeros(AT_ONCE, np.float32), np.empty(AT_ONCE, np.uint8)
        for number in mine:
            at, scale = number * dim, scales[info[number] >> 3]
            for i in range(0, whole, AT_ONCE):
                count(x, at + i, scale, codes, to + i)
            if whole < dim:
                for i in range(whole, dim):
                    last[i - whole] = x[at + i]
                count(last, 0, scale, found, 0)
                for i in range(whole, dim):
                    codes[to + i] = found[i - whole]
            to += wide

    return part(code, tier)


_code1, _code2, _code3, _code4, _code5, _code6 = map(_coder, range(1, 7))


@part
def _code7(x: Any, mine: Any, info: Any, scales: Any, dim: Any, codes: Any) -> None:
    """Eight bits have equal steps, of 8, from -1016 on: no search, and exact."""
    to = np.uint64(0)
    for number in mine:
        at, scale = np.uint64(number * dim), scales[info[number] >> 3]
        for i in range(np.uint64(dim)):
            step = np.ceil(x[at + i] * scale * np.float32(0.125)) + np.float32(127)
            codes[to + i] = np.uint8(np.int32(min(max(step, np.float32(0)), np.float32(255))))
        to += np.uint64(-(-dim // 8) * 8)


@part
def _code(tier: Any, x: Any, mine: Any, info: Any, scales: Any, dim: Any, codes: Any) -> None:
    if tier == 1:
        _code1(x, mine, info, scales, dim, codes)
    elif tier == 2:
        _code2(x, mine, info, scales, dim, codes)
    elif tier == 3:
        _code3(x, mine, info, scales, dim, codes)
    elif tier == 4:
        _code4(x, mine, info, scales, dim, codes)
    elif tier == 5:
        _code5(x, mine, info, scales, dim, codes)
    elif tier == 6:
        _code6(x, mine, info, scales, dim, codes)
    else:
        _code7(x, mine, info, scales, dim, codes)


@part
def rotate(x: Any, rows: Any, dim: Any, matrix: Any) -> None:
    """Rows one behind the other, in place: DCT over the odd part, then Hadamard."""
    m = matrix.shape[0]
    h = dim // m
    if m > 1:
        room, at = np.empty(dim, np.float32), np.uint64(0)
        wide = np.uint64(h)
        for _ in range(rows):
            for j in range(np.uint64(m)):
                for i in range(wide):
                    total = matrix[j, 0] * x[at + i]
                    for other in range(np.uint64(1), np.uint64(m)):
                        total += matrix[j, other] * x[at + other * wide + i]
                    room[j * wide + i] = total
            for i in range(np.uint64(dim)):
                x[at + i] = room[i]
            at += np.uint64(dim)
    hadamard(h, x, rows * m)


@part
def code_rows(x: Any, info: Any, scales: Any, dim: Any, out: Any) -> None:
    """Rotated rows, one behind the other in ``x``, to packed codes."""
    wide = -(-dim // 8) * 8
    codes, mine, at = np.zeros(BLOCK * wide, np.uint8), np.empty(info.size, np.int64), 0
    for tier in range(1, 8):
        total = 0
        for number in range(info.size):
            if info[number] & 7 == tier:
                mine[total] = number
                total += 1
        for first in range(0, total, BLOCK):
            own = mine[first : min(first + BLOCK, total)]
            _code(tier, x, own, info, scales, dim, codes)
            size = own.size * wide * _WIDTHS[tier] // 8
            pack(tier, codes[: own.size * wide], out[at : at + size])
            at += size


@kernel
def encode(rows: Any, info: Any, scales: Any, matrix: Any, out: Any) -> None:
    """`reference.encode_rows`; ``matrix`` is the DCT over the odd part of ``dim``."""
    x = rows.copy().reshape(rows.size)
    rotate(x, len(rows), rows.shape[1], matrix)
    code_rows(x, info, scales, rows.shape[1], out)
