"""The row kernels for processors, in Numba: the same bits as the reference.

Rows go through in tiles of one packed block, which stay in the first-level cache. Every inner loop
has one width, unit stride and unsigned indices, so LLVM makes vector code of it. The Hadamard
transform has the constant geometry of Pease (1968): each stage reads neighbours and writes halves,
the same two shuffles at every stage.

Kernels are compiled at their first use and kept on disk. What is compiled with constants of its own
is made by a function of those constants alone: Numba finds closures again by what they close over.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from numba import njit

from .levels import CUBICS, TIERS, thresholds
from .reference import BLOCK

_WIDTHS = np.array(TIERS, np.int64)
# All thresholds, tier after tier; where each tier's begin.
_THRESHOLDS = np.concatenate([thresholds(bits) for bits in TIERS[1:]])
_FIRST = np.cumsum([0, 0, *(2**bits - 1 for bits in TIERS[1:])])


@cache
def _warn_once(reason: str) -> None:
    warnings.warn(
        "compiled kernels cannot be kept on disk, every process will compile them anew for some "
        f"seconds ({reason}). Set NUMBA_CACHE_DIR to a folder that can be written.",
        stacklevel=4,
    )


def _compile(function: Callable[..., Any]) -> Any:
    try:
        return njit(function, cache=True, nogil=True, error_model="numpy")
    except RuntimeError as error:
        _warn_once(str(error).split("for file")[-1].strip())
        return njit(function, nogil=True, error_model="numpy")


def _unpacker(width: int, low: int) -> Any:
    """``f(packed, codes)``: a plane, bits ``low`` to ``low + width`` of the codes, from its bytes.

    The first plane is written, later ones are added. All shifts are constants: with variable ones
    the arithmetic would be as wide as a word.
    """
    mask, turns = (1 << width) - 1, 8 // width

    def unpack(packed: Any, codes: Any) -> None:
        size = np.uint64(packed.size)
        for turn in range(turns):
            right = np.uint8(turn * width)
            for i in range(size):
                part = np.uint8(((packed[i] >> right) & np.uint8(mask)) << np.uint8(low))
                if low == 0:
                    codes[np.uint64(turn) * size + i] = part
                else:
                    codes[np.uint64(turn) * size + i] |= part

    return _compile(unpack)


def _packer(width: int, low: int) -> Any:
    """``f(codes, packed)``: undo `_unpacker`."""
    mask, turns = (1 << width) - 1, 8 // width

    def pack(codes: Any, packed: Any) -> None:
        size = np.uint64(packed.size)
        for turn in range(turns):
            left = np.uint8(turn * width)
            for i in range(size):
                code = codes[np.uint64(turn) * size + i]
                part = np.uint8(((code >> np.uint8(low)) & np.uint8(mask)) << left)
                if turn == 0:
                    packed[i] = part
                else:
                    packed[i] |= part

    return _compile(pack)


def _leveler(tier: int) -> Any:
    """``f(codes, x)``: a tier's levels."""
    a, b, k, s = (int(constant) for constant in CUBICS[tier])
    top, rounding = (1 << TIERS[tier]) - 1, (1 << s) >> 1

    def level(codes: Any, x: Any) -> None:
        for i in range(np.uint64(codes.size)):
            u = np.int16(np.int16(2) * np.int16(codes[i]) - np.int16(top))
            slope = np.int16(np.int16(a) + (np.int16(np.int16(u * u) * np.int16(b)) >> k))
            x[i] = np.int16(np.int16(np.int16(u * slope) + np.int16(rounding)) >> s)

    return _compile(level)


def _transformer(h: int) -> Any:
    """``f(x, y, runs)``: Hadamard transforms of ``h`` numbers each, with as much room in ``y``."""
    half, stages = h // 2, h.bit_length() - 1

    def transform(x: Any, y: Any, runs: Any) -> None:
        for _ in range(stages // 2):
            for run in range(np.uint64(runs)):
                base = run * np.uint64(h)
                for i in range(np.uint64(half)):
                    one = x[base + np.uint64(2) * i]
                    two = x[base + np.uint64(2) * i + np.uint64(1)]
                    y[base + i] = one + two
                    y[base + np.uint64(half) + i] = one - two
            for run in range(np.uint64(runs)):
                base = run * np.uint64(h)
                for i in range(np.uint64(half)):
                    one = y[base + np.uint64(2) * i]
                    two = y[base + np.uint64(2) * i + np.uint64(1)]
                    x[base + i] = one + two
                    x[base + np.uint64(half) + i] = one - two
        if stages % 2:
            for run in range(np.uint64(runs)):
                base = run * np.uint64(h)
                for i in range(np.uint64(half)):
                    one = x[base + np.uint64(2) * i]
                    two = x[base + np.uint64(2) * i + np.uint64(1)]
                    y[base + i] = one + two
                    y[base + np.uint64(half) + i] = one - two
            for i in range(np.uint64(runs * h)):
                x[i] = y[i]

    return _compile(transform)


_unpack10, _unpack12, _unpack14 = _unpacker(1, 0), _unpacker(1, 2), _unpacker(1, 4)
_unpack20, _unpack24, _unpack40 = _unpacker(2, 0), _unpacker(2, 4), _unpacker(4, 0)
_pack10, _pack12, _pack14 = _packer(1, 0), _packer(1, 2), _packer(1, 4)
_pack20, _pack24, _pack40 = _packer(2, 0), _packer(2, 4), _packer(4, 0)
_level1, _level2, _level3, _level4, _level5, _level6, _level7 = map(_leveler, range(1, 8))
_transform2, _transform4, _transform8, _transform16 = map(_transformer, (2, 4, 8, 16))
_transform32, _transform64, _transform128, _transform256 = map(_transformer, (32, 64, 128, 256))


@_compile
def _unpack(tier: Any, packed: Any, codes: Any, x: Any) -> None:
    """One block of a tier, bytes to levels ``x``."""
    if tier == 1:
        _unpack10(packed, codes)
        _level1(codes, x)
    elif tier == 2:
        _unpack20(packed, codes)
        _level2(codes, x)
    elif tier == 3:
        _unpack20(packed[: codes.size // 4], codes)
        _unpack12(packed[codes.size // 4 :], codes)
        _level3(codes, x)
    elif tier == 4:
        _unpack40(packed, codes)
        _level4(codes, x)
    elif tier == 5:
        _unpack40(packed[: codes.size // 2], codes)
        _unpack14(packed[codes.size // 2 :], codes)
        _level5(codes, x)
    elif tier == 6:
        _unpack40(packed[: codes.size // 2], codes)
        _unpack24(packed[codes.size // 2 :], codes)
        _level6(codes, x)
    else:
        _level7(packed, x)


@_compile
def _pack(tier: Any, codes: Any, packed: Any) -> None:
    """One block of a tier, codes to bytes."""
    if tier == 1:
        _pack10(codes, packed)
    elif tier == 2:
        _pack20(codes, packed)
    elif tier == 3:
        _pack20(codes, packed[: codes.size // 4])
        _pack12(codes, packed[codes.size // 4 :])
    elif tier == 4:
        _pack40(codes, packed)
    elif tier == 5:
        _pack40(codes, packed[: codes.size // 2])
        _pack14(codes, packed[codes.size // 2 :])
    elif tier == 6:
        _pack40(codes, packed[: codes.size // 2])
        _pack24(codes, packed[codes.size // 2 :])
    else:
        packed[:] = codes


@_compile
def _hadamard(h: Any, x: Any, y: Any, runs: Any) -> None:
    if h == 64:
        _transform64(x, y, runs)
    elif h == 128:
        _transform128(x, y, runs)
    elif h == 256:
        _transform256(x, y, runs)
    elif h == 32:
        _transform32(x, y, runs)
    elif h == 16:
        _transform16(x, y, runs)
    elif h == 8:
        _transform8(x, y, runs)
    elif h == 4:
        _transform4(x, y, runs)
    elif h == 2:
        _transform2(x, y, runs)


def _emitter(dim: int, half: bool) -> Any:
    """``f(number, stop, …)``: rows to their places, as long as their tiers' blocks are open.

    ``dim`` 0 stands for any, with a DCT; ``mean`` is the head's. Returns the first row not written.
    """

    def emit(
        number: Any, stop: Any, info: Any, here: Any, opened: Any, scales: Any, matrix: Any,
        mean: Any, out: Any,
    ) -> Any:  # fmt: skip
        size = np.uint64(dim if dim else mean.size)
        m = np.uint64(1 if dim else matrix.shape[0])
        h = size // m
        while number < stop:
            tier = info[number] & 7
            if here[tier] == BLOCK:
                break
            base, to = np.uint64(tier * BLOCK + here[tier]) * size, np.uint64(number) * size
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

    return _compile(emit)


_emit, _emit_half = _emitter(0, False), _emitter(0, True)
_emit64, _emit64_half = _emitter(64, False), _emitter(64, True)
_emit128, _emit128_half = _emitter(128, False), _emitter(128, True)
_emit256, _emit256_half = _emitter(256, False), _emitter(256, True)


@_compile
def decode(
    codes: Any, info: Any, scales: Any, matrix: Any, mean: Any, opened: Any, half: Any, out: Any
) -> None:
    """`reference.decode_rows`.

    ``matrix`` is the DCT over the odd part of ``dim``; ``opened`` room for nine blocks of integers;
    ``out`` is flat, float32 or, with ``half``, the bits of bfloat16 as uint16.
    """
    heads, dim = mean.shape
    each, block, wide = info.size // heads, BLOCK * dim, -(-dim // 8) * 8
    m = matrix.shape[0]
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
    spare = opened[8 * block :]
    space, found = np.empty(BLOCK * wide, np.uint8), np.empty(BLOCK * wide, np.int16)
    for head in range(heads):
        number, stop, own = head * each, (head + 1) * each, mean[head]
        while True:
            if dim == 64:
                if half:
                    number = _emit64_half(
                        number, stop, info, here, opened, scales, matrix, own, out
                    )
                else:
                    number = _emit64(number, stop, info, here, opened, scales, matrix, own, out)
            elif dim == 128:
                if half:
                    number = _emit128_half(
                        number, stop, info, here, opened, scales, matrix, own, out
                    )
                else:
                    number = _emit128(number, stop, info, here, opened, scales, matrix, own, out)
            elif dim == 256:
                if half:
                    number = _emit256_half(
                        number, stop, info, here, opened, scales, matrix, own, out
                    )
                else:
                    number = _emit256(number, stop, info, here, opened, scales, matrix, own, out)
            elif half:
                number = _emit_half(number, stop, info, here, opened, scales, matrix, own, out)
            else:
                number = _emit(number, stop, info, here, opened, scales, matrix, own, out)
            if number == stop:
                break
            tier = info[number] & 7
            count = min(BLOCK, left[tier])
            size = count * wide * _WIDTHS[tier] // 8
            packed, x = codes[at[tier] : at[tier] + size], opened[tier * block : (tier + 1) * block]
            if wide == dim:
                _unpack(tier, packed, space[: count * wide], x)
            else:
                _unpack(tier, packed, space[: count * wide], found)
                for r in range(count):
                    x[r * dim : (r + 1) * dim] = found[r * wide : r * wide + dim]
            _hadamard(dim // m, x, spare, count * m)
            at[tier] += size
            left[tier] -= count
            here[tier] = 0


@_compile
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


@_compile
def _count_below(x: Any, codes: Any, threshold: Any) -> None:
    for i in range(np.uint64(codes.size)):
        codes[i] += np.uint8(x[i] > threshold)


@_compile
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


@_compile
def encode(rows: Any, info: Any, scales: Any, matrix: Any, out: Any) -> None:
    """`reference.encode_rows`; ``matrix`` is the DCT over the odd part of ``dim``."""
    dim, m = rows.shape[1], matrix.shape[0]
    h, wide = dim // m, -(-dim // 8) * 8
    codes = np.zeros(BLOCK * wide, np.uint8)
    x, y = np.empty(BLOCK * dim, np.float32), np.empty(BLOCK * dim, np.float32)
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
            _hadamard(h, x, y, count * m)
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
            _pack(tier, codes[: count * wide], out[at : at + size])
            at += size
