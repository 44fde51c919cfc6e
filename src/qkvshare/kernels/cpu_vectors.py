"""Vector code by hand where LLVM would not make it of loops: Hadamard transforms, and counting.

Of a transform, loops over neighbours become two loads, shuffles and two stores a stage, and took
half of decoding. Here LLVM is given the stages as whole vectors, so that numbers are loaded and
stored once. A number lies in one of the vectors, in one half of it, at one place of that half; each
is a bit, or some bits, of its index, and a butterfly is a sum and a difference of vectors once the
index bit that it works on tells vectors apart. The shuffles that bring it there are single
instructions where vectors are halves of 128 bits (x86, ARM), and in the end all numbers are where
they began.

Stages are in the order of the index bits, lowest first, as `rotation.hadamard` has them: rounding
depends on the order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

_REGISTER, _HALF = 32, 16  # bytes
_LANE, _OFFSET = ir.IntType(32), ir.IntType(64)


def transformer(size: int) -> Any:
    """``f(x, at)``: the transform of ``x[at : at + size]``, in place; a power of two from 2."""

    @intrinsic
    def transform(_: Any, x: Any, at: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            number = context.get_data_type(x.dtype)
            lanes = min(lanes_of(context, number), size // 2)
            place = places(context, builder, (x, args[0]), args[1], lanes)
            vectors = [place.load(start) for start in range(0, size, lanes)]
            hadamard(context, builder, vectors, number)
            for start, vector in zip(range(0, size, lanes), vectors, strict=True):
                place.store(start, vector)
            return context.get_dummy_value()

        return types.void(x, at), generate

    return transform


def counter(limits: Sequence[float]) -> Any:
    """``f(x, at, codes)``: of the 8 float32 numbers of ``x`` from ``at`` on, how many ``limits``
    each is above, to the same places of ``codes``, uint8. All comparisons stay in registers."""

    @intrinsic
    def count(_: Any, x: Any, at: Any, codes: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            lanes = _REGISTER // 4
            vector = places(context, builder, (x, args[0]), args[1], lanes).load(0)
            counts = ir.VectorType(ir.IntType(32), lanes)
            total = ir.Constant(counts, [0] * lanes)
            for limit in limits:
                splat = ir.Constant(vector.type, [float(limit)] * lanes)
                above = builder.fcmp_ordered(">", vector, splat)
                total = builder.sub(total, builder.sext(above, counts))  # all ones are -1
            small = builder.trunc(total, ir.VectorType(ir.IntType(8), lanes))
            places(context, builder, (codes, args[2]), args[1], lanes).store(0, small)
            return context.get_dummy_value()

        return types.void(x, at, codes), generate

    return count


@dataclass(frozen=True)
class Places:
    """Vectors of ``lanes`` numbers in an array, counted from ``first``."""

    builder: Any
    first: Any
    each: int  # bytes of a number
    vector: Any

    def load(self, at: int) -> Any:
        """Numbers from ``at`` on."""
        found = self.builder.load(self._place(at))
        found.align = self.each
        return found

    def store(self, at: int, vector: Any) -> None:
        """To where numbers from ``at`` on are."""
        self.builder.store(vector, self._place(at)).align = self.each

    def _place(self, at: int) -> Any:
        place = self.builder.gep(self.first, [ir.Constant(_OFFSET, at)])
        return self.builder.bitcast(place, self.vector.as_pointer())


def places(context: Any, builder: Any, array: tuple[Any, Any], at: Any, lanes: int) -> Places:
    """In ``array`` (its type and value) from index ``at`` on."""
    kind, value = array
    number = context.get_data_type(kind.dtype)
    first = builder.gep(context.make_array(kind)(context, builder, value).data, [at])
    return Places(builder, first, context.get_abi_sizeof(number), ir.VectorType(number, lanes))


def lanes_of(context: Any, number: Any) -> int:
    """Numbers of a full vector."""
    return _REGISTER // int(context.get_abi_sizeof(number))


def shuffled(builder: Any, pair: tuple[Any, Any], of: Sequence[int]) -> Any:
    """Numbers ``of`` a pair of vectors."""
    mask = ir.Constant(ir.VectorType(_LANE, len(of)), list(of))
    return builder.shuffle_vector(*pair, mask)


def hadamard(context: Any, builder: Any, vectors: list[Any], number: Any) -> None:
    """Of all that ``vectors``, two at least, hold; in place."""
    lanes = vectors[0].type.count
    half = min(lanes, _HALF // context.get_abi_sizeof(number))
    whole = isinstance(number, ir.IntType)
    plus, minus = (builder.add, builder.sub) if whole else (builder.fadd, builder.fsub)

    def butterflies(apart: int) -> None:
        for one in range(len(vectors)):
            if not one & apart:
                low, high = vectors[one], vectors[one | apart]
                vectors[one], vectors[one | apart] = plus(low, high), minus(low, high)

    def shuffle(low: list[int], step: int) -> None:
        for one in range(0, len(vectors), 2):
            pair = vectors[one], vectors[one + 1]
            vectors[one] = shuffled(builder, pair, low)
            vectors[one + 1] = shuffled(builder, pair, [at + step for at in low])

    # Two ways to turn a place's bits round by one, each time with the next one telling the two
    # vectors apart; once more, and all are back. Even places to one vector and odd to the other
    # takes the lowest bit first. Interleaving takes the highest first, which makes no difference
    # to whole numbers, and is one instruction for those of 16 bits too.
    if whole:
        pairs = [at for place in range(half // 2) for at in (place, lanes + place)]
        step = half // 2
    else:
        pairs = [*range(0, half, 2), *range(lanes, lanes + half, 2)]
        step = 1
    low = [at + start for start in range(0, lanes, half) for at in pairs]
    for _ in range(half.bit_length() - 1):
        shuffle(low, step)
        butterflies(1)
    if half > 1:
        shuffle(low, step)
    if lanes > half:
        # The lower halves of two vectors to one, the upper to the other, and back.
        lower = [*range(half), *range(lanes, lanes + half)]
        shuffle(lower, half)
        butterflies(1)
        shuffle(lower, half)
    apart = 1
    while apart < len(vectors):
        butterflies(apart)
        apart *= 2
