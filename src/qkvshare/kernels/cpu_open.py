"""A packed block from bytes to levels, as vectors, without codes in memory between.

Loops over planes would write and read the codes once for every plane, and once more for the levels,
in vectors of half the size that the processor may have. Of each 64 levels those of even places come
first, then those of odd ones: bytes become 16 bits without a shuffle, and the first stage of a
Hadamard transform needs none, see `parted_hadamard`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from .cpu_hadamard import CHUNK
from .cpu_vectors import cgutils, has, places, shuffled, splat
from .levels import CUBICS, TIERS, levels
from .planes import planes

_BYTE, _SHORT, _AT_ONCE = ir.IntType(8), ir.IntType(16), CHUNK
_BYTES = ir.VectorType(_BYTE, _AT_ONCE)
_SHORTS = ir.VectorType(_SHORT, _AT_ONCE // 2)
# Blocks of whole vectors in every plane, even of one bit.
WHOLE = 8 * _AT_ONCE


def opener(tier: int) -> Any:
    """``f(packed, x)``: the levels of a block of ``x.size`` codes, a multiple of `WHOLE`; of each
    `CHUNK` first the even ones."""

    @intrinsic
    def open_block(_: Any, packed: Any, x: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            count = context.make_array(x)(context, builder, args[1]).nitems
            number = count.type
            each = [_Plane(builder, number, width) for width in planes(TIERS[tier])]
            with cgutils.for_range(builder, builder.udiv(count, number(_AT_ONCE))) as loop:
                codes, start, low = ir.Constant(_BYTES, [0] * _AT_ONCE), number(0), 0
                for plane in each:
                    at = builder.add(start, builder.load(plane.at))
                    found = places(context, builder, (packed, args[0]), at, _AT_ONCE).load(0)
                    codes = builder.or_(codes, plane.part(builder, found, low))
                    size = builder.lshr(builder.mul(count, number(plane.width)), number(3))
                    plane.go_on(builder, size)
                    start, low = builder.add(start, size), low + plane.width
                to = builder.mul(loop.index, number(_AT_ONCE))
                there = places(context, builder, (x, args[1]), to, _AT_ONCE // 2)
                for half, found in enumerate(_levels(context, builder, tier, codes)):
                    there.store(half * _AT_ONCE // 2, found)
            return context.get_dummy_value()

        return types.void(packed, x), generate

    return open_block


class _Plane:
    """Where the loop is in one of a block's planes: its next byte, and its lowest bit there."""

    def __init__(self, builder: Any, number: Any, width: int) -> None:
        self.width = width
        self.at = cgutils.alloca_once_value(builder, number(0))
        self.bit = cgutils.alloca_once_value(builder, _SHORT(0))

    def part(self, builder: Any, found: Any, low: int) -> Any:
        """Those bits of ``found`` that belong to codes, from bit ``low`` of them on."""
        if self.width == 8:
            return found
        # Bytes are moved two at a time; what comes over from the next is cut off.
        pairs = builder.bitcast(found, _SHORTS)
        right = splat(builder, builder.load(self.bit), _AT_ONCE // 2)
        moved = builder.bitcast(builder.lshr(pairs, right), _BYTES)
        mask = ir.Constant(_BYTES, [(1 << self.width) - 1] * _AT_ONCE)
        part = builder.and_(moved, mask)
        return builder.shl(part, ir.Constant(_BYTES, [low] * _AT_ONCE)) if low else part

    def go_on(self, builder: Any, size: Any) -> None:
        """To the next bytes of the plane, ``size`` in all, or to its beginning and higher bits."""
        number = size.type
        next_ = builder.add(builder.load(self.at), number(_AT_ONCE))
        over = builder.icmp_unsigned("==", next_, size)
        builder.store(builder.select(over, number(0), next_), self.at)
        bit = builder.load(self.bit)
        higher = builder.add(bit, _SHORT(self.width))
        builder.store(builder.select(over, higher, bit), self.bit)


def _levels(context: Any, builder: Any, tier: int, codes: Any) -> tuple[Any, Any]:
    """Of the codes at even places, and of those at odd ones, as 16 bits."""
    lookup, eight = _lookup(context, tier), _each(8)
    if lookup is None:
        both = builder.bitcast(codes, _SHORTS)
        even = builder.lshr(builder.shl(both, eight), eight)
        return _computed(builder, tier, even), _computed(builder, tier, builder.lshr(both, eight))
    table = levels(TIERS[tier]).view(np.uint8).reshape(-1, 2)  # low bytes, high bytes
    low, high = (_found(builder, *lookup, table[:, byte], codes) for byte in (0, 1))
    first, second = _each(0xFF), _each(0xFF00)
    even = builder.or_(builder.and_(low, first), builder.shl(high, eight))
    return even, builder.or_(builder.lshr(low, eight), builder.and_(high, second))


def _lookup(context: Any, tier: int) -> tuple[str, int] | None:
    """The instruction that finds bytes in a table of as many as the tier has levels, and in how
    many places at once: a few instructions instead of 20. Without one levels are computed."""
    if TIERS[tier] <= 4 and has(context, "avx512bw"):
        return "llvm.x86.avx512.pshuf.b.512", 64
    if TIERS[tier] <= 4 and has(context, "avx2"):
        return "llvm.x86.avx2.pshuf.b", 32
    if TIERS[tier] <= 6 and has(context, "avx512vbmi"):
        return "llvm.x86.avx512.permvar.qi.512", 64
    return None


def _found(builder: Any, name: str, lanes: int, table: npt.NDArray[np.uint8], codes: Any) -> Any:
    """The byte of ``table`` for each code, two in 16 bits."""
    kind = ir.VectorType(_BYTE, lanes)
    find = cgutils.get_or_insert_function(builder.module, ir.FunctionType(kind, [kind, kind]), name)
    whole, parts = ir.Constant(kind, np.resize(table, lanes).tolist()), []
    for at in range(0, _AT_ONCE, lanes):
        part = shuffled(builder, (codes, codes), range(at, at + lanes))
        parts.append(builder.call(find, [whole, part]))
    both = shuffled(builder, (parts[0], parts[-1]), range(_AT_ONCE))
    return builder.bitcast(both, _SHORTS)


def _computed(builder: Any, tier: int, codes: Any) -> Any:
    """See `levels`, of ``codes`` as 16 bits."""
    a, b, k, s = (int(constant) for constant in CUBICS[tier])

    u = builder.sub(builder.add(codes, codes), _each((1 << TIERS[tier]) - 1))
    slope = _each(a)
    if b:
        curved = builder.mul(builder.mul(u, u), _each(b))
        slope = builder.add(slope, builder.ashr(curved, _each(k)))
    level = builder.mul(u, slope)
    return builder.ashr(builder.add(level, _each((1 << s) >> 1)), _each(s)) if s else level


def _each(value: int) -> Any:
    return ir.Constant(_SHORTS, [value] * (_AT_ONCE // 2))
