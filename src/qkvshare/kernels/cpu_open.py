"""A packed block from bytes to levels, as vectors, without codes in memory between.

Loops over planes would write and read the codes once for every plane, and once more for the levels,
in vectors of half the size that the processor may have. Of each 64 levels those of even places come
first, then those of odd ones: bytes become 16 bits without a shuffle, and the first stage of a
Hadamard transform needs none, see `parted_hadamard`. Where `by_pairs`, they lie as
`paired_hadamard` takes them, which needs fewer instructions still.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from .cpu_hadamard import CHUNK, PAIRED, by_pairs
from .cpu_vectors import cgutils, has, places, shuffled
from .levels import CUBICS, TIERS, levels
from .planes import planes

_BYTE, _SHORT, _AT_ONCE = ir.IntType(8), ir.IntType(16), CHUNK
_BYTES = ir.VectorType(_BYTE, _AT_ONCE)
_SHORTS = ir.VectorType(_SHORT, _AT_ONCE // 2)


def opener(tier: int) -> Any:
    """``f(packed, x, half)``: the levels of the first half of a full block, or of the second, of
    fewer than 8 bits; each `CHUNK` in the order of the transform."""
    widths = planes(TIERS[tier])
    narrow = widths[-1]
    turns = 8 // narrow

    @intrinsic
    def open_half(_: Any, packed: Any, x: Any, half: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            size = context.make_array(x)(context, builder, args[1]).nitems
            number = size.type

            def vector(array: int, at: Any, lanes: int) -> Any:
                one = (packed, x)[array], args[array]
                return places(context, builder, one, builder.mul(at, number(_AT_ONCE)), lanes)

            # Vectors of bytes that the narrowest plane has. Of a plane ``k`` times as wide vector
            # ``n`` of these, and those a multiple of ``run`` behind it, hold the same codes.
            run = builder.udiv(builder.mul(size, number(narrow)), number(4 * _AT_ONCE))
            for now in (0, 1):
                chosen = builder.icmp_unsigned("==", args[2], args[2].type(now))
                with builder.if_then(chosen), cgutils.for_range(builder, run) as loop:
                    found, start = list[list[Any]](), loop.index
                    for width in widths:
                        found.append([])
                        for _ in range(width // narrow):
                            found[-1].append(vector(0, start, _AT_ONCE).load(0))
                            start = builder.add(start, run)
                    for turn in range(turns // 2):
                        codes = _codes(builder, widths, found, turn + now * turns // 2)
                        to = builder.add(builder.mul(run, number(turn)), loop.index)
                        _store(context, builder, tier, codes, vector(1, to, _AT_ONCE // 2))
            return context.get_dummy_value()

        return types.void(packed, x, half), generate

    return open_half


def layer(tier: int) -> Any:
    """``f(codes, x)``: the levels of codes in bytes, a multiple of `CHUNK`; in the same order."""

    @intrinsic
    def lay(_: Any, codes: Any, x: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            size = context.make_array(x)(context, builder, args[1]).nitems
            chunks = builder.udiv(size, size.type(_AT_ONCE))
            with cgutils.for_range(builder, chunks) as loop:
                at = builder.mul(loop.index, size.type(_AT_ONCE))
                found = places(context, builder, (codes, args[0]), at, _AT_ONCE).load(0)
                there = places(context, builder, (x, args[1]), at, _AT_ONCE // 2)
                _store(context, builder, tier, found, there)
            return context.get_dummy_value()

        return types.void(codes, x), generate

    return lay


def _store(context: Any, builder: Any, tier: int, codes: Any, there: Any) -> None:
    for half, vector in enumerate(_levels(context, builder, tier, codes)):
        there.store(half * _AT_ONCE // 2, vector)


def _codes(builder: Any, widths: tuple[int, ...], found: list[list[Any]], turn: int) -> Any:
    """The codes of one turn in bytes; above their own bits there may be others."""
    codes, low = None, 0
    for width, of_plane in zip(widths, found, strict=True):
        parts = len(of_plane)
        # Bytes are moved two at a time.
        pairs_ = builder.bitcast(of_plane[turn % parts], _SHORTS)
        right = turn // parts * width - low
        if right:
            shift = builder.lshr if right > 0 else builder.shl
            pairs_ = shift(pairs_, _each(abs(right)))
        part = builder.bitcast(pairs_, _BYTES)
        if codes is not None:
            lower = ir.Constant(_BYTES, [(1 << low) - 1] * _AT_ONCE)
            part = builder.or_(builder.and_(codes, lower), builder.and_(part, builder.not_(lower)))
        codes, low = part, low + width
    return codes


def _levels(context: Any, builder: Any, tier: int, codes: Any) -> tuple[Any, Any]:
    """16 bits each, in two vectors."""
    if by_pairs(context):
        if TIERS[tier] <= 5:
            return _looked_up_whole(builder, tier, codes)
        # Interleaved, low bytes and high ones are 16 bits.
        codes = shuffled(builder, (codes, codes), PAIRED)
        if TIERS[tier] == 8:
            wide = _interleaved(builder, codes, ir.Constant(_BYTES, [0] * _AT_ONCE))
            return _computed(builder, tier, wide[0]), _computed(builder, tier, wide[1])
        return _interleaved(builder, *_looked_up(context, builder, tier, codes))
    if TIERS[tier] < 8:
        own = ir.Constant(_BYTES, [(1 << TIERS[tier]) - 1] * _AT_ONCE)
        codes = builder.and_(codes, own)
    eight = _each(8)
    if _lookup(context, tier) is None:
        both = builder.bitcast(codes, _SHORTS)
        even = builder.lshr(builder.shl(both, eight), eight)
        return _computed(builder, tier, even), _computed(builder, tier, builder.lshr(both, eight))
    found = _looked_up(context, builder, tier, codes)
    low, high = (builder.bitcast(of, _SHORTS) for of in found)
    first, second = _each(0xFF), _each(0xFF00)
    even = builder.or_(builder.and_(low, first), builder.shl(high, eight))
    return even, builder.or_(builder.lshr(low, eight), builder.and_(high, second))


def _interleaved(builder: Any, one: Any, two: Any) -> tuple[Any, Any]:
    """Bytes of both in turn, the first and second eight of every quarter: one instruction each."""
    out = []
    for half in (0, 8):
        at = [start + half + n for start in range(0, _AT_ONCE, 16) for n in range(8)]
        turns = [place + of for place in at for of in (0, _AT_ONCE)]
        out.append(builder.bitcast(shuffled(builder, (one, two), turns), _SHORTS))
    return out[0], out[1]


def _lookup(context: Any, tier: int) -> tuple[str, int] | None:
    """The instruction that finds bytes in a table of as many as the tier has levels, and in how
    many places at once: a few instructions instead of 20. Without one levels are computed."""
    if TIERS[tier] <= 6 and has(context, "avx512vbmi"):
        return "llvm.x86.avx512.permvar.qi.512", 64
    if TIERS[tier] <= 4 and has(context, "avx512bw"):
        return "llvm.x86.avx512.pshuf.b.512", 64
    if TIERS[tier] <= 4 and has(context, "avx2"):
        return "llvm.x86.avx2.pshuf.b", 32
    return None


def _looked_up(context: Any, builder: Any, tier: int, codes: Any) -> list[Any]:
    """The lower and the higher byte of each code's level. Of a table of 64 bytes the tier's is
    repeated, so that bits above a code's do not count."""
    found = _lookup(context, tier)
    assert found is not None
    name, lanes = found
    kind = ir.VectorType(_BYTE, lanes)
    find = cgutils.get_or_insert_function(builder.module, ir.FunctionType(kind, [kind, kind]), name)
    out = []
    for table in levels(TIERS[tier]).view(np.uint8).reshape(-1, 2).T:
        whole, parts = _table(kind, table), []
        for at in range(0, _AT_ONCE, lanes):
            part = shuffled(builder, (codes, codes), range(at, at + lanes))
            parts.append(builder.call(find, [whole, part]))
        out.append(shuffled(builder, (parts[0], parts[-1]), range(_AT_ONCE)))
    return out


def _looked_up_whole(builder: Any, tier: int, codes: Any) -> tuple[Any, Any]:
    """Each code's level in `PAIRED` order, from a table of 32, where bytes come twice to 16 bits:
    those above a code's do not count."""
    kind = ir.FunctionType(_SHORTS, [_SHORTS, _SHORTS])
    name = "llvm.x86.avx512.permvar.hi.512"
    find = cgutils.get_or_insert_function(builder.module, kind, name)
    table = ir.Constant(_SHORTS, np.resize(levels(TIERS[tier]), _SHORTS.count).tolist())
    out = []
    for half in (0, 8):
        at = [PAIRED[start + half + n] for start in range(0, _AT_ONCE, 16) for n in range(8)]
        twice = [place for place in at for _ in range(2)]
        words = builder.bitcast(shuffled(builder, (codes, codes), twice), _SHORTS)
        out.append(builder.call(find, [table, words]))
    return out[0], out[1]


def _table(kind: Any, table: npt.NDArray[np.uint8]) -> Any:
    return ir.Constant(kind, np.resize(table, kind.count).tolist())


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
