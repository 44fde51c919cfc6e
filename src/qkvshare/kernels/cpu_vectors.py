"""The Hadamard transform on a processor: all stages in vector registers, for any vector unit.

Loops over neighbours become two loads, shuffles and two stores a stage, and took half of decoding.
Here LLVM is given the stages as whole vectors, so that numbers are loaded and stored once. A number
lies in one of the vectors, in one half of it, at one place of that half; each is a bit, or some
bits, of its index, and a butterfly is a sum and a difference of vectors once the index bit that it
works on tells vectors apart. The shuffles that bring it there are single instructions where vectors
are halves of 128 bits (x86, ARM), and in the end all numbers are where they began.

Stages are in the order of the index bits, lowest first, as `rotation.hadamard` has them: rounding
depends on the order.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

_REGISTER, _HALF = 32, 16  # bytes
_INDEX = ir.IntType(32)


def transformer(size: int) -> Any:
    """``f(x, at)``: the transform of ``x[at : at + size]``, in place; a power of two from 2."""

    @intrinsic  # type: ignore[untyped-decorator]
    def transform(_: Any, x: Any, at: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            number = context.get_data_type(x.dtype)
            each = context.get_abi_sizeof(number)
            lanes = min(_REGISTER // each, size // 2)
            vector = ir.VectorType(number, lanes)
            first = context.make_array(x)(context, builder, args[0]).data
            places = []
            for start in range(0, size, lanes):
                offset = builder.add(args[1], ir.Constant(args[1].type, start))
                places.append(builder.bitcast(builder.gep(first, [offset]), vector.as_pointer()))
            vectors = [_aligned(builder.load(place), each) for place in places]
            _stages(builder, vectors, lanes, min(lanes, _HALF // each), number)
            for place, done in zip(places, vectors, strict=True):
                _aligned(builder.store(done, place), each)
            return context.get_dummy_value()

        return types.void(x, at), generate

    return transform


def _aligned(access: Any, each: int) -> Any:
    access.align = each
    return access


def _stages(builder: Any, vectors: list[Any], lanes: int, half: int, number: Any) -> None:
    """All of them; vectors of ``lanes`` numbers, of which ``half`` are shuffled at once."""
    whole = isinstance(number, ir.IntType)
    plus, minus = (builder.add, builder.sub) if whole else (builder.fadd, builder.fsub)

    def butterflies(apart: int) -> None:
        for one in range(len(vectors)):
            if not one & apart:
                other = one | apart
                low, high = vectors[one], vectors[other]
                vectors[one], vectors[other] = plus(low, high), minus(low, high)

    def shuffle(low: list[int], high: list[int]) -> None:
        for one in range(0, len(vectors), 2):
            pair = vectors[one], vectors[one + 1]
            for place, of in ((one, low), (one + 1, high)):
                mask = ir.Constant(ir.VectorType(_INDEX, lanes), of)
                vectors[place] = builder.shuffle_vector(*pair, mask)

    # Two ways to turn a place's bits round by one, each time with the next one telling the two
    # vectors apart; once more, and all are back. Even places to one vector and odd to the other
    # takes the lowest bit first. Interleaving takes the highest first, which makes no difference
    # to whole numbers, and is one instruction for those of 16 bits too.
    starts = range(0, lanes, half)
    if whole:
        pairs = [at for place in range(half // 2) for at in (place, lanes + place)]
        low, step = [at + start for start in starts for at in pairs], half // 2
    else:
        pairs = [*range(0, half, 2), *range(lanes, lanes + half, 2)]
        low, step = [at + start for start in starts for at in pairs], 1
    for _ in range(half.bit_length() - 1):
        shuffle(low, [at + step for at in low])
        butterflies(1)
    if half > 1:
        shuffle(low, [at + step for at in low])
    if lanes > half:
        # The lower halves of two vectors to one, the upper to the other, and back.
        lower = [*range(half), *range(lanes, lanes + half)]
        upper = [at + half for at in lower]
        shuffle(lower, upper)
        butterflies(1)
        shuffle(lower, upper)
    apart = 1
    while apart < len(vectors):
        butterflies(apart)
        apart *= 2
