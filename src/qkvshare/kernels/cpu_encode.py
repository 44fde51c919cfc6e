"""Encode rows on a processor, in Numba: the same bits as the reference."""

from __future__ import annotations

from typing import Any

import numpy as np

from .compiling import kernel, part
from .cpu_blocks import hadamard, pack
from .levels import TIERS, thresholds
from .reference import BLOCK

_WIDTHS = np.array(TIERS, np.int64)
# All thresholds, tier after tier; where each tier's begin.
_THRESHOLDS = np.concatenate([thresholds(bits) for bits in TIERS[1:]])
_FIRST = np.cumsum([0, 0, *(2**bits - 1 for bits in TIERS[1:])])


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


@part
def _count_below(x: Any, codes: Any, threshold: Any) -> None:
    for i in range(np.uint64(codes.size)):
        codes[i] += np.uint8(x[i] > threshold)


@part
def _guess(x: Any, codes: Any, threshold: Any) -> None:
    """The widest tier has equal steps: a guess, then its neighbours are compared."""
    step, last = threshold[1] - threshold[0], threshold.size
    for i in range(codes.size):
        code = int(min(max((x[i] - threshold[0]) / step, np.float32(0)), np.float32(last)))
        while code < last and x[i] > threshold[code]:
            code += 1
        while code > 0 and x[i] <= threshold[code - 1]:
            code -= 1
        codes[i] = np.uint8(code)


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
        threshold = _THRESHOLDS[_FIRST[tier] : _FIRST[tier + 1]]
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
                if tier == 7:
                    _guess(own, into, threshold)
                else:
                    for t in threshold:
                        _count_below(own, into, t)
            size = count * wide * _WIDTHS[tier] // 8
            pack(tier, codes[: count * wide], out[at : at + size])
            at += size
