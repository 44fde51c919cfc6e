"""Decode rows on a processor, in Numba: the same bits as the reference."""

from __future__ import annotations

from typing import Any

import numpy as np

from .compiling import kernel, part
from .cpu_blocks import hadamard, unpack
from .levels import TIERS
from .reference import BLOCK

_WIDTHS = np.array(TIERS, np.int64)


def _emitter(dim: int, half: bool) -> Any:
    """``f(number, stop, …)``: rows to their places, as long as their tiers' blocks are open.

    ``dim`` 0 stands for any, with a DCT; ``mean`` is the head's; row ``number`` is written as row
    ``number + shift``. Returns the first row not written.
    """

    def emit(
        number: Any, stop: Any, info: Any, here: Any, opened: Any, scales: Any, matrix: Any,
        mean: Any, shift: Any, out: Any,
    ) -> Any:  # fmt: skip
        size = np.uint64(dim if dim else mean.size)
        m = np.uint64(1 if dim else matrix.shape[0])
        h = size // m
        while number < stop:
            tier = info[number] & 7
            if here[tier] == BLOCK:
                break
            base = np.uint64(tier * BLOCK + here[tier]) * size
            to = np.uint64(number + shift) * size
            scale = scales[info[number] >> 3]
            for j in range(m):
                for i in range(h):
                    if dim:
                        total = np.float32(opened[base + i]) * scale
                    else:
                        total = matrix[0, j] * (np.float32(opened[base + i]) * scale)
                        for other in range(np.uint64(1), m):
                            term = np.float32(opened[base + other * h + i]) * scale
                            total += matrix[other, j] * term
                    total += mean[j * h + i]
                    if half:
                        # To nearest, ties to even, as processors and torch round.
                        bits = np.float32(total).view(np.uint32)
                        odd = (bits >> np.uint32(16)) & np.uint32(1)
                        rounded = (bits + np.uint32(0x7FFF) + odd) >> np.uint32(16)
                        out[to + j * h + i] = np.uint16(rounded)
                    else:
                        out[to + j * h + i] = total
            if tier:
                here[tier] += 1
            number += 1
        return number

    return part(emit, dim, half)


_emit, _emit_half = _emitter(0, False), _emitter(0, True)
_emit64, _emit64_half = _emitter(64, False), _emitter(64, True)
_emit128, _emit128_half = _emitter(128, False), _emitter(128, True)
_emit256, _emit256_half = _emitter(256, False), _emitter(256, True)


@kernel
def decode(
    codes: Any, info: Any, scales: Any, turn: Any, mean: Any, opened: Any, half: Any,
    behind: Any, out: Any,
) -> None:  # fmt: skip
    """`reference.decode_rows`.

    ``turn`` is the DCT over the odd part of ``dim``; ``opened`` room for eight blocks of integers;
    ``out`` is flat, float32 or, with ``half``, the bits of bfloat16 as uint16, with ``behind``
    rows behind those of each head.
    """
    heads, dim = mean.shape
    each, block, wide = info.size // heads, BLOCK * dim, -(-dim // 8) * 8
    m = turn.shape[0]
    left, at = np.zeros(8, np.int64), np.zeros(8, np.int64)
    for byte in info:
        left[byte & 7] += 1
    for tier in range(1, 8):
        at[tier] = at[tier - 1] + left[tier - 1] * (wide * _WIDTHS[tier - 1] // 8)
    # Rows leave in their own order, whatever their tier, since memory is written fastest so: each
    # tier has an open block, and its next one is opened when those rows have gone.
    here = np.full(8, BLOCK)
    here[0] = 0
    opened[:block] = 0
    space, found = np.empty(BLOCK * wide, np.uint8), np.empty(BLOCK * wide, np.int16)
    for head in range(heads):
        number, stop, own = head * each, (head + 1) * each, mean[head]
        by = head * behind
        while True:
            if dim == 64:
                if half:
                    number = _emit64_half(
                        number, stop, info, here, opened, scales, turn, own, by, out
                    )
                else:
                    number = _emit64(number, stop, info, here, opened, scales, turn, own, by, out)
            elif dim == 128:
                if half:
                    number = _emit128_half(
                        number, stop, info, here, opened, scales, turn, own, by, out
                    )
                else:
                    number = _emit128(number, stop, info, here, opened, scales, turn, own, by, out)
            elif dim == 256:
                if half:
                    number = _emit256_half(
                        number, stop, info, here, opened, scales, turn, own, by, out
                    )
                else:
                    number = _emit256(number, stop, info, here, opened, scales, turn, own, by, out)
            elif half:
                number = _emit_half(number, stop, info, here, opened, scales, turn, own, by, out)
            else:
                number = _emit(number, stop, info, here, opened, scales, turn, own, by, out)
            if number == stop:
                break
            tier = info[number] & 7
            count = min(BLOCK, left[tier])
            size = count * wide * _WIDTHS[tier] // 8
            packed, x = codes[at[tier] : at[tier] + size], opened[tier * block : (tier + 1) * block]
            if wide == dim:
                unpack(tier, packed, space[: count * wide], x)
            else:
                unpack(tier, packed, space[: count * wide], found)
                for r in range(count):
                    x[r * dim : (r + 1) * dim] = found[r * wide : r * wide + dim]
            hadamard(dim // m, x, count * m)
            at[tier] += size
            left[tier] -= count
            here[tier] = 0
