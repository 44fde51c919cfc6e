"""A row from its levels to where it stays, without leaving the vector registers.

The inverse Hadamard transform, scale, mean, the turn to its position, and the number format: one
load and one store a number. Loops with an array between any two of these steps take half as long
again.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from .cpu_hadamard import CHUNK, butterflies, by_pairs, paired_hadamard, parted_hadamard
from .cpu_memory import fetch
from .cpu_vectors import cgutils, has, lanes_of, places, shuffled, splat

_AHEAD = 16  # rows
_SHORT, _WORD, _FLOAT = ir.IntType(16), ir.IntType(32), ir.FloatType()


class _BFloat16(ir.Type):  # type: ignore[misc]
    """What llvmlite has no name for."""

    def _to_string(self) -> str:
        return "bfloat"


def row_writer(dim: int, turned: bool) -> Any:
    """``f(levels, at, scale, mean, of, angles, out, to)``: one row of ``dim``, 64 or more.

    ``levels`` are int16, from ``at`` on; ``mean`` float32, of the row's head from ``of`` on;
    ``angles`` cosines and sines, flat, and where the token's are, used if ``turned``; ``out``
    float32, or the bits of bfloat16 as uint16, from ``to`` on.
    """

    @intrinsic
    def write(
        _: Any, levels: Any, at: Any, scale: Any, mean: Any, of: Any, cos: Any, sin: Any,
        angle: Any, out: Any, to: Any,
    ) -> Any:  # fmt: skip
        kinds = levels, at, scale, mean, of, cos, sin, angle, out, to

        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            def of_array(array: int, offset: int, lanes: int) -> Any:
                one = kinds[array], args[array]
                return places(context, builder, one, args[offset], lanes)

            lanes = lanes_of(context, _FLOAT)
            narrow, floats = out.dtype != types.float32, ir.VectorType(_FLOAT, lanes)
            native = has(context, "avx512bf16")
            half = narrow and not native and not by_pairs(context)
            numbers = _sums(context, builder, of_array(0, 1, 2 * lanes), dim, half)
            scales = splat(builder, args[2], lanes)
            means = _ordered(builder, of_array(3, 4, lanes), dim, half)
            for n, mean_ in enumerate(means):
                scaled = builder.fmul(builder.sitofp(numbers[n], floats), scales)
                numbers[n] = builder.fadd(scaled, mean_)
            if turned:
                angles = [
                    _ordered(builder, of_array(array, 7, lanes), dim // 2, half) for array in (5, 6)
                ]
                _turn(builder, numbers, *angles)
            _fetch(context, builder, (out, args[8]), args[9], dim)
            if narrow:
                there = of_array(8, 9, 2 * lanes)
                for n in range(0, len(numbers), 2):
                    two = numbers[n], numbers[n + 1]
                    if native:
                        both = _rounded_at_once(builder, *two)
                    else:
                        both = _joined(builder, *two) if half else _in_order(builder, *two)
                    there.store(n * lanes, both)
            else:
                there = of_array(8, 9, lanes)
                for n, vector in enumerate(numbers):
                    there.store(n * lanes, vector)
            return context.get_dummy_value()

        return types.void(*kinds), generate

    return write


def _fetch(context: Any, builder: Any, array: tuple[Any, Any], at: Any, dim: int) -> None:
    """Have the memory of a later row come, so that what is written need not wait for it."""
    place = places(context, builder, array, at, 1)
    for line in range(_AHEAD * dim * place.each, (_AHEAD + 1) * dim * place.each, 64):
        to = builder.bitcast(place.first, ir.IntType(8).as_pointer())
        fetch(builder, builder.gep(to, [ir.IntType(64)(line)]), to_write=True)


def _sums(context: Any, builder: Any, levels: Any, dim: int, half: bool) -> list[Any]:
    """Levels transformed, as vectors of int32, in the order of `_ordered`."""
    lanes, out = levels.vector.count // 2, list[Any]()
    words = ir.VectorType(_WORD, lanes)
    sixteen = ir.Constant(words, [16] * lanes)
    for chunk in range(0, dim, CHUNK):
        # Sums of so many fit 16 bits.
        loaded = [levels.load(chunk + at) for at in range(0, CHUNK, 2 * lanes)]
        if by_pairs(context):
            out += paired_hadamard(builder, *loaded)
            continue
        for vector in parted_hadamard(context, builder, loaded):
            if half:
                pairs = builder.bitcast(vector, words)
                low = builder.ashr(builder.shl(pairs, sixteen), sixteen)
                out += [low, builder.ashr(pairs, sixteen)]
                continue
            for start in (0, lanes):
                part = shuffled(builder, (vector, vector), range(start, start + lanes))
                out.append(builder.sext(part, words))
    apart = CHUNK // lanes
    while apart < len(out):
        butterflies(builder, out, apart)
        apart *= 2
    return out


def _ordered(builder: Any, place: Any, count: int, half: bool) -> list[Any]:
    """``count`` numbers as vectors: as they lie; or, in half precision, of each two vectors first
    the even numbers, then the odd, which then come together without shuffles."""
    vectors = [place.load(start) for start in range(0, count, place.vector.count)]
    return _parted(builder, vectors) if half else vectors


def _parted(builder: Any, vectors: list[Any]) -> list[Any]:
    evens, out = list(range(0, 2 * vectors[0].type.count, 2)), []
    for n in range(0, len(vectors), 2):
        pair = vectors[n], vectors[n + 1]
        out += [shuffled(builder, pair, [at + odd for at in evens]) for odd in (0, 1)]
    return out


def _turn(builder: Any, numbers: list[Any], cos: list[Any], sin: list[Any]) -> None:
    """Number ``i`` with number ``i + dim / 2``, as `cpu_turn` does."""
    half = len(numbers) // 2
    for n, (c, s) in enumerate(zip(cos, sin, strict=True)):
        first, second = numbers[n], numbers[n + half]
        numbers[n] = builder.fsub(builder.fmul(first, c), builder.fmul(second, s))
        numbers[n + half] = builder.fadd(builder.fmul(second, c), builder.fmul(first, s))


def _joined(builder: Any, evens: Any, odds: Any) -> Any:
    """The bits of two vectors as bfloat16."""
    words = ir.VectorType(_WORD, evens.type.count)
    low, high = _rounded(builder, evens), _rounded(builder, odds)
    sixteen, upper = (ir.Constant(words, [value] * words.count) for value in (16, 0xFFFF0000))
    both = builder.or_(builder.lshr(low, sixteen), builder.and_(high, upper))
    return builder.bitcast(both, ir.VectorType(_SHORT, 2 * words.count))


def _in_order(builder: Any, one: Any, two: Any) -> Any:
    """The same of numbers in order."""
    count = 2 * one.type.count
    halves = ir.VectorType(_SHORT, count)
    pair = [builder.bitcast(_rounded(builder, of), halves) for of in (one, two)]
    return shuffled(builder, (pair[0], pair[1]), range(1, 2 * count, 2))


def _rounded(builder: Any, vector: Any) -> Any:
    """Of each number's bits the upper half is it as bfloat16: to nearest, ties to even, as
    processors and torch round."""
    words = ir.VectorType(_WORD, vector.type.count)

    def each(value: int) -> Any:
        return ir.Constant(words, [value] * words.count)

    bits = builder.bitcast(vector, words)
    odd = builder.and_(builder.lshr(bits, each(16)), each(1))
    return builder.add(builder.add(bits, each(0x7FFF)), odd)


def _rounded_at_once(builder: Any, one: Any, two: Any) -> Any:
    """The same where the processor has an instruction for it, which takes numbers below 2**-126
    for 0."""
    narrow = ir.VectorType(_BFloat16(), 2 * one.type.count)
    kind = ir.FunctionType(narrow, [one.type, one.type])
    name = "llvm.x86.avx512bf16.cvtne2ps2bf16.512"
    convert = cgutils.get_or_insert_function(builder.module, kind, name)
    both = builder.call(convert, [two, one])
    return builder.bitcast(both, ir.VectorType(_SHORT, narrow.count))
