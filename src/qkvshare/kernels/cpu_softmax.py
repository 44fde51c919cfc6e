"""From scores to weights, one row of a block at a time, with what is known of the row so far.

The online softmax (Milakov and Gimelshein, arXiv:1805.02867): weights are relative to the largest
score so far, and when there is a larger one, what was summed before is multiplied.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from .cpu_memory import OFFSET, Memory
from .cpu_tiles import BLOCK
from .cpu_vectors import cgutils, lanes_of, of_vectors, shuffled, splat

LOWEST = np.float32(np.finfo(np.float32).min)
_WORD = ir.IntType(32)
# exp(x) = 2**n · exp(r), where n is x / log(2) to the nearest, by the polynomial of Cephes' expf.
_LOG2E, _LN2_HIGH, _LN2_LOW = 1.44269504088896341, 0.693359375, -2.12194440e-4
_EXP = (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 0.5)
_LEAST = -87.0  # below this it is taken for 0


def _weigh(_: Any, scores: Any, mask: Any, count: Any, state: Any, apart: Any) -> Any:
    """``f(scores, mask, count, state, apart)``: scores ``[BLOCK]``, of which ``count`` are tokens'
    and the others count for nothing, become weights in place; ``mask`` is added where it is not 0.

    At ``state`` is the largest score so far, ``apart`` numbers on the sum of the weights so far,
    and as far again the factor that what was summed with the weights so far is to have.
    """

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        lanes = lanes_of(context, ir.FloatType())
        row, one = Memory(builder, args[0], lanes), Memory(builder, args[3])
        starts, counts = (
            range(0, BLOCK, lanes),
            splat(builder, builder.trunc(args[2], _WORD), lanes),
        )
        lowest, nothing = (ir.Constant(row.kind, [value] * lanes) for value in (LOWEST, 0.0))

        def of_tokens(start: int, vector: Any, other: Any) -> Any:
            places = list(range(start, start + lanes))
            index = ir.Constant(ir.VectorType(_WORD, lanes), places)
            return builder.select(builder.icmp_signed("<", index, counts), vector, other)

        rooms = [cgutils.alloca_once_value(builder, row.load(start)) for start in starts]
        with builder.if_then(builder.icmp_unsigned("!=", args[1], OFFSET(0))):
            added = Memory(builder, args[1], lanes)
            for start, room in zip(starts, rooms, strict=True):
                builder.store(builder.fadd(builder.load(room), added.load(start)), room)
        found = [
            of_tokens(start, _greater(builder, lowest, builder.load(room)), lowest)
            for start, room in zip(starts, rooms, strict=True)
        ]
        before = one.load(0)
        peak = _greater(builder, before, _folded(builder, found, _greater))
        peaks, weights = splat(builder, peak, lanes), []
        for start, vector in zip(starts, found, strict=True):
            weight = _exp(builder, builder.fsub(vector, peaks))
            weights.append(of_tokens(start, weight, nothing))
            row.store(start, weights[-1])
        total = _folded(builder, weights, lambda builder, a, b: builder.fadd(a, b))
        change = splat(builder, builder.fsub(before, peak), lanes)
        factor = builder.extract_element(_exp(builder, change), _WORD(0))
        one.store(0, peak)
        one.store(args[4], of_vectors(builder, "fmuladd", one.load(args[4]), factor, total))
        one.store(builder.add(args[4], args[4]), factor)
        return context.get_dummy_value()

    return types.void(scores, mask, count, state, apart), generate


weigh: Any = intrinsic(_weigh)


def _greater(builder: Any, one: Any, two: Any) -> Any:
    """``two`` where it is no number."""
    return builder.select(builder.fcmp_ordered(">", one, two), one, two)


def _folded(builder: Any, vectors: list[Any], both: Callable[[Any, Any, Any], Any]) -> Any:
    """One number of all numbers."""
    vector, lanes = vectors[0], vectors[0].type.count
    for other in vectors[1:]:
        vector = both(builder, vector, other)
    while lanes > 1:
        lanes //= 2
        parts = [shuffled(builder, (vector, vector), range(at, at + lanes)) for at in (0, lanes)]
        vector = both(builder, *parts)
    return builder.extract_element(vector, _WORD(0))


def _exp(builder: Any, x: Any) -> Any:
    """Of numbers that are not above 0; what is no number stays none."""
    lanes = x.type.count

    def each(value: float) -> Any:
        return ir.Constant(x.type, [value] * lanes)

    def fused(one: Any, two: Any, three: Any) -> Any:
        return of_vectors(builder, "fmuladd", one, two, three)

    inside = builder.select(builder.fcmp_ordered(">", x, each(_LEAST)), x, each(_LEAST))
    n = of_vectors(builder, "rint", builder.fmul(inside, each(_LOG2E)))
    rest = fused(n, each(-_LN2_LOW), fused(n, each(-_LN2_HIGH), x))
    series = each(_EXP[0])
    for term in _EXP[1:]:
        series = fused(series, rest, each(term))
    series = builder.fadd(fused(series, builder.fmul(rest, rest), rest), each(1.0))
    words = ir.VectorType(_WORD, lanes)
    power = builder.add(builder.fptosi(n, words), ir.Constant(words, [127] * lanes))
    power = builder.bitcast(builder.shl(power, ir.Constant(words, [23] * lanes)), x.type)
    small = builder.fcmp_ordered("<", x, each(_LEAST))
    return builder.select(small, each(0.0), builder.fmul(series, power))
