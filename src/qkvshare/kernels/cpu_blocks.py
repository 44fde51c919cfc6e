"""What both kernels for processors do with one packed block, in Numba.

Blocks stay in the first-level cache. Every inner loop has one width, unit stride and unsigned
indices, so LLVM makes vector code of it; of the Hadamard transform it would not (`cpu_hadamard`).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .compiling import bare
from .cpu_hadamard import transformer
from .cpu_open import layer, opener
from .levels import CUBICS, TIERS


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

    return bare(unpack, width, low)


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

    return bare(pack, width, low)


def _leveler(tier: int) -> Any:
    """``f(codes, x)``: a tier's levels."""
    a, b, k, s = (int(constant) for constant in CUBICS[tier])
    top, rounding = (1 << TIERS[tier]) - 1, (1 << s) >> 1

    def level(codes: Any, x: Any) -> None:
        for i in range(np.uint64(codes.size)):
            u = np.int16(np.int16(2) * np.int16(codes[i]) - np.int16(top))
            slope = np.int16(np.int16(a) + (np.int16(np.int16(u * u) * np.int16(b)) >> k))
            x[i] = np.int16(np.int16(np.int16(u * slope) + np.int16(rounding)) >> s)

    return bare(level, tier)


_unpack10, _unpack12, _unpack14 = _unpacker(1, 0), _unpacker(1, 2), _unpacker(1, 4)
_unpack20, _unpack24, _unpack40 = _unpacker(2, 0), _unpacker(2, 4), _unpacker(4, 0)
_pack10, _pack12, _pack14 = _packer(1, 0), _packer(1, 2), _packer(1, 4)
_pack20, _pack24, _pack40 = _packer(2, 0), _packer(2, 4), _packer(4, 0)
_level1, _level2, _level3, _level4, _level5, _level6, _level7 = map(_leveler, range(1, 8))
_transform2, _transform4, _transform8, _transform16 = map(transformer, (2, 4, 8, 16))
_transform32, _transform64, _transform128, _transform256 = map(transformer, (32, 64, 128, 256))


_open1, _open2, _open3, _open4, _open5, _open6 = map(opener, range(1, 7))
_lay1, _lay2, _lay3, _lay4, _lay5, _lay6, _lay7 = map(layer, range(1, 8))


@bare
def unpack_half(tier: Any, half: Any, packed: Any, codes: Any, x: Any) -> None:
    """The first half of one block of a tier, or the second, bytes to levels ``x``, each `CHUNK` in
    the order that rows are written from; ``codes`` is room for the codes of all."""
    first = half * (codes.size - x.size)
    if tier == 7:
        _lay7(packed[first : first + x.size], x)
    elif codes.size != 2 * x.size:
        _unpack(tier, packed, codes)
        _lay(tier, codes[first : first + x.size], x)
    elif tier == 1:
        _open1(packed, x, half)
    elif tier == 2:
        _open2(packed, x, half)
    elif tier == 3:
        _open3(packed, x, half)
    elif tier == 4:
        _open4(packed, x, half)
    elif tier == 5:
        _open5(packed, x, half)
    else:
        _open6(packed, x, half)


@bare
def unpack(tier: Any, packed: Any, codes: Any, x: Any) -> None:
    """One block of a tier, bytes to levels in order."""
    if tier == 7:
        _level7(packed, x)
        return
    _unpack(tier, packed, codes)
    if tier == 1:
        _level1(codes, x)
    elif tier == 2:
        _level2(codes, x)
    elif tier == 3:
        _level3(codes, x)
    elif tier == 4:
        _level4(codes, x)
    elif tier == 5:
        _level5(codes, x)
    else:
        _level6(codes, x)


@bare
def _lay(tier: Any, codes: Any, x: Any) -> None:
    if tier == 1:
        _lay1(codes, x)
    elif tier == 2:
        _lay2(codes, x)
    elif tier == 3:
        _lay3(codes, x)
    elif tier == 4:
        _lay4(codes, x)
    elif tier == 5:
        _lay5(codes, x)
    else:
        _lay6(codes, x)


@bare
def _unpack(tier: Any, packed: Any, codes: Any) -> None:
    """One block, of fewer than 8 bits, to codes."""
    if tier == 1:
        _unpack10(packed, codes)
    elif tier == 2:
        _unpack20(packed, codes)
    elif tier == 3:
        _unpack20(packed[: codes.size // 4], codes)
        _unpack12(packed[codes.size // 4 :], codes)
    elif tier == 4:
        _unpack40(packed, codes)
    elif tier == 5:
        _unpack40(packed[: codes.size // 2], codes)
        _unpack14(packed[codes.size // 2 :], codes)
    else:
        _unpack40(packed[: codes.size // 2], codes)
        _unpack24(packed[codes.size // 2 :], codes)


@bare
def pack(tier: Any, codes: Any, packed: Any) -> None:
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
        for i in range(np.uint64(packed.size)):
            packed[i] = codes[i]


@bare
def hadamard(h: Any, x: Any, runs: Any) -> None:
    """``runs`` transforms of ``h`` numbers each, in place."""
    if h == 64:
        for run in range(runs):
            _transform64(x, run * 64)
    elif h == 128:
        for run in range(runs):
            _transform128(x, run * 128)
    elif h == 256:
        for run in range(runs):
            _transform256(x, run * 256)
    elif h == 32:
        for run in range(runs):
            _transform32(x, run * 32)
    elif h == 16:
        for run in range(runs):
            _transform16(x, run * 16)
    elif h == 8:
        for run in range(runs):
            _transform8(x, run * 8)
    elif h == 4:
        for run in range(runs):
            _transform4(x, run * 4)
    elif h == 2:
        for run in range(runs):
            _transform2(x, run * 2)
