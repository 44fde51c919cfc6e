"""Encode rows on a processor, in Numba: the same bits as the reference."""

from __future__ import annotations

from typing import Any

import numpy as np

from .compiling import kernel, part
from .cpu_blocks import hadamard, pack
from .cpu_vectors import counter
from .levels import TIERS, thresholds
from .reference import BLOCK

_WIDTHS = np.array(TIERS, np.int64)


@part
def _load(row: Any, matrix: Any, x: Any) -> None:
    """One row: DCT."""
    m = matrix.shape[0]
    h = np.uint64(row.size // m)
    if m == 1:
        for i in range(h):
            x[i] = row[i]
    else:
        for j in range(np.uint64(m)):
            for i in range(h):
                total = matrix[j, 0] * row[i]
                for other in range(np.uint64(1), np.uint64(m)):
                    total += matrix[j, other] * row[other * h + i]
                x[j * h + i] = total


def _coder(tier: int) -> Any:
    """``f(x, codes)``: the nearest levels of a tier, as many as there are thresholds below."""
    count = counter(thresholds(TIERS[tier]).tolist())

    def code(x: Any, codes: Any) -> None:
        whole = codes.size // 8 * 8
        for at in range(0, whole, 8):
            count(x, at, codes)
        if whole < codes.size:
            last, found = np.zeros(8, np.float32), np.empty(8, np.uint8)
            last[: codes.size - whole] = x[whole:]
            count(last, 0, found)
            codes[whole:] = found[: codes.size - whole]

    return part(code, tier)


_code1, _code2, _code3, _code4, _code5, _code6 = map(_coder, range(1, 7))


@part
def _code7(x: Any, codes: Any) -> None:
    """Eight bits have equal steps, of 8, from -1016 on: no search, and exact."""
    for i in range(np.uint64(codes.size)):
        step = np.ceil(x[i] * np.float32(0.125)) + np.float32(127)
        codes[i] = np.uint8(np.int32(min(max(step, np.float32(0)), np.float32(255))))


@part
def _code(tier: Any, x: Any, codes: Any) -> None:
    if tier == 1:
        _code1(x, codes)
    elif tier == 2:
        _code2(x, codes)
    elif tier == 3:
        _code3(x, codes)
    elif tier == 4:
        _code4(x, codes)
    elif tier == 5:
        _code5(x, codes)
    elif tier == 6:
        _code6(x, codes)
    else:
        _code7(x, codes)


@kernel
def peaks(rows: Any, chosen: Any, matrix: Any, out: Any) -> None:
    """The largest magnitude that each of ``chosen`` rows has once it is rotated, to ``out``."""
    dim, m = rows.shape[1], matrix.shape[0]
    x = np.empty(dim, np.float32)
    for n in range(chosen.size):
        _load(rows[chosen[n]], matrix, x)
        hadamard(dim // m, x, m)
        peak = np.float32(0)
        for i in range(dim):
            peak = max(peak, abs(x[i]))
        out[n] = peak


@kernel
def encode(rows: Any, info: Any, scales: Any, matrix: Any, out: Any) -> None:
    """`reference.encode_rows`; ``matrix`` is the DCT over the odd part of ``dim``."""
    dim, m = rows.shape[1], matrix.shape[0]
    h, wide = dim // m, -(-dim // 8) * 8
    codes = np.zeros(BLOCK * wide, np.uint8)
    x = np.empty(BLOCK * dim, np.float32)
    mine = np.empty(info.size, np.int64)
    at = 0
    for tier in range(1, 8):
        total = 0
        for number in range(info.size):
            if info[number] & 7 == tier:
                mine[total] = number
                total += 1
        for first in range(0, total, BLOCK):
            count = min(BLOCK, total - first)
            for r in range(count):
                _load(rows[mine[first + r]], matrix, x[r * dim : (r + 1) * dim])
            hadamard(h, x, count * m)
            codes[:] = np.uint8(0)
            for r in range(count):
                own, into = x[r * dim : (r + 1) * dim], codes[r * wide : r * wide + dim]
                scale = scales[info[mine[first + r]] >> 3]
                for i in range(np.uint64(dim)):
                    own[i] *= scale
                if wide != dim:
                    _code(tier, own, into)
            if wide == dim:
                _code(tier, x[: count * dim], codes[: count * dim])
            size = count * wide * _WIDTHS[tier] // 8
            pack(tier, codes[: count * wide], out[at : at + size])
            at += size
