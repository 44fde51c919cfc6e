"""Hadamard transforms, as vectors.

Of a transform, loops over neighbours become two loads, shuffles and two stores a stage, and took
half of decoding. Here LLVM is given the stages as whole vectors, so that numbers are loaded and
stored once. A number lies in one of the vectors, in one quarter of it (or half), at one place of
that; each is a bit, or some bits, of its index, and a butterfly is a sum and a difference of
vectors once the index bit that it works on tells vectors apart. The shuffles that bring it there
are single instructions where vectors are made of 128 bits each (x86, ARM), and in the end all
numbers are where they began.

Stages are in the order of the index bits, lowest first, as `rotation.hadamard` has them: rounding
depends on the order.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from .cpu_vectors import cgutils, has, lanes_of, places, shuffled

CHUNK = 64  # levels of which the even ones lie first, see `cpu_open`
_QUARTER = 16  # bytes that a vector is made of
_LANE = ir.IntType(32)


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


def hadamard(context: Any, builder: Any, vectors: list[Any], number: Any) -> None:
    """Of all that ``vectors``, two at least, hold; in place."""
    lanes = vectors[0].type.count
    quarter = min(lanes, _QUARTER // context.get_abi_sizeof(number))

    def turns(low: list[int], step: int, places: int) -> None:
        for _ in range(places.bit_length() - 1):
            _shuffle(builder, vectors, low, step)
            butterflies(builder, vectors, 1)
        if places > 1:
            _shuffle(builder, vectors, low, step)

    # Two ways to turn a place's bits round by one, each time with the next one telling the two
    # vectors apart; once more, and all are back. Even places to one vector and odd to the other
    # takes the lowest bit first. Interleaving takes the highest first, which makes no difference
    # to whole numbers, and is one instruction for those of 16 bits too.
    if isinstance(number, ir.IntType):
        pairs = [at for place in range(quarter // 2) for at in (place, lanes + place)]
        step = quarter // 2
    else:
        pairs = [*range(0, quarter, 2), *range(lanes, lanes + quarter, 2)]
        step = 1
    turns([at + start for start in range(0, lanes, quarter) for at in pairs], step, quarter)
    turns(_even(lanes, quarter), quarter, lanes // quarter)
    apart = 1
    while apart < len(vectors):
        butterflies(builder, vectors, apart)
        apart *= 2


def parted_hadamard(context: Any, builder: Any, vectors: list[Any]) -> list[Any]:
    """Of `CHUNK` numbers of 16 bits, the even ones first; what comes out is in order.

    As `hadamard`, but the lowest bit tells vectors apart from the start, so that after all turns
    every bit is where it belongs, and none is turned back.
    """
    lanes, half = vectors[0].type.count, len(vectors) // 2
    quarter = _QUARTER // 2
    out = []
    for both in zip(vectors[:half], vectors[half:], strict=True):
        pair = list(both)
        butterflies(builder, pair, 1)
        pair = _swapped(context, builder, *pair)
        butterflies(builder, pair, 1)
        for low, step, places_ in (
            (_doubles(lanes), 2, quarter // 2),
            (_even(lanes, quarter), quarter, lanes // quarter),
        ):
            for _ in range(places_.bit_length() - 1):
                _shuffle(builder, pair, low, step)
                butterflies(builder, pair, 1)
        out += pair
    apart = 2
    while apart < len(out):
        butterflies(builder, out, apart)
        apart *= 2
    return out


def by_pairs(context: Any) -> bool:
    """Whether levels lie in `PAIRED` order, and not the even ones first: where the processor brings
    64 bytes to any order by one instruction."""
    return has(context, "avx512vbmi") and has(context, "avx512bw")


def paired_hadamard(builder: Any, one: Any, two: Any) -> list[Any]:
    """Of `CHUNK` numbers of 16 bits in `PAIRED` order, as four vectors of int32 in order.

    The last stage is that of neighbours, which the processor multiplies with 1 or -1 and adds, and
    which makes 32 bits of 16 by the way.
    """
    pair = [one, two]
    butterflies(builder, pair, 1)
    for low, step in _MOVES:
        _shuffle(builder, pair, low, step)
        butterflies(builder, pair, 1)
    words = ir.VectorType(_LANE, one.type.count // 2)
    kind = ir.FunctionType(words, [one.type, one.type])
    add = cgutils.get_or_insert_function(builder.module, kind, "llvm.x86.avx512.pmaddw.d.512")
    signs = [ir.Constant(one.type, [1, sign] * words.count) for sign in (1, -1)]
    return [builder.call(add, [vector, sign]) for vector in pair for sign in signs]


def _even(lanes: int, size: int) -> list[int]:
    """Every other run of ``size`` places of a pair of vectors."""
    return [start + at for start in range(0, 2 * lanes, 2 * size) for at in range(size)]


def _doubles(lanes: int) -> list[int]:
    """The first and third two of every quarter, one vector's and then the other's."""
    starts = [[start + at for at in (0, 1, 4, 5)] for start in range(0, lanes, 8)]
    return [at for start in starts for at in (*start, *(lanes + one for one in start))]


_MOVES = ((_doubles(32), 2),) * 2 + ((_even(32, 8), 8),) * 2


def _paired() -> list[int]:
    """Back from where numbers are before neighbours are added, so that sums come out in order; then
    from 16 bits to the bytes that interleaving makes them of."""
    where = [[32 * one + 16 * odd + at for at in range(16) for odd in (0, 1)] for one in (0, 1)]
    for low, step in reversed(_MOVES):
        before = [0] * CHUNK
        for at, first, second in zip(low, *where, strict=True):
            before[at], before[at + step] = first, second
        where = [before[:32], before[32:]]
    return [
        where[half][start + at] for start in range(0, 32, 8) for half in (0, 1) for at in range(8)
    ]


PAIRED = _paired()


def _shuffle(builder: Any, vectors: list[Any], low: list[int], step: int) -> None:
    """Of each two neighbours: places ``low`` to one, and those ``step`` behind to the other."""
    for one in range(0, len(vectors), 2):
        pair = vectors[one], vectors[one + 1]
        vectors[one] = shuffled(builder, pair, low)
        vectors[one + 1] = shuffled(builder, pair, [at + step for at in low])


def butterflies(builder: Any, vectors: list[Any], apart: int) -> None:
    """Sums and differences of vectors that are ``apart``."""
    whole = isinstance(vectors[0].type.element, ir.IntType)
    plus, minus = (builder.add, builder.sub) if whole else (builder.fadd, builder.fsub)
    for one in range(len(vectors)):
        if not one & apart:
            low, high = vectors[one], vectors[one | apart]
            vectors[one], vectors[one | apart] = plus(low, high), minus(low, high)


def _swapped(context: Any, builder: Any, one: Any, two: Any) -> list[Any]:
    """Even places of both, of 16 bits, to one vector and odd to the other: no shuffle."""
    words = ir.VectorType(_LANE, one.type.count // 2)
    half, low = (ir.Constant(words, [value] * words.count) for value in (16, 0xFFFF))
    first, second = (builder.bitcast(at, words) for at in (one, two))
    left, right = builder.shl(second, half), builder.lshr(first, half)
    if has(context, "avx512bw"):
        # LLVM does not see through it, and so does not make it a permutation, of three steps.
        kind = ir.FunctionType(words, [words, words, words, _LANE])
        name = "llvm.x86.avx512.pternlog.d.512"
        choose = cgutils.get_or_insert_function(builder.module, kind, name)
        pairs = (first, left), (right, second)
        both = [builder.call(choose, [low, *pair, _LANE(0xCA)]) for pair in pairs]
    else:
        even = builder.or_(builder.and_(first, low), left)
        both = [even, builder.or_(right, builder.and_(second, builder.not_(low)))]
    return [builder.bitcast(at, one.type) for at in both]
