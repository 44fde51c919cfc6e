"""Vector code by hand where LLVM would not make it of loops: Hadamard transforms, and counting.

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

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils as _cgutils
from numba.extending import intrinsic

cgutils: Any = _cgutils  # it has no types
_REGISTER, _WIDE, _QUARTER = 32, 64, 16  # bytes; vectors are wide where the processor has them
_LANE, _OFFSET = ir.IntType(32), ir.IntType(64)
CHUNK = 64  # levels of which the even ones lie first, see `cpu_open`
SUMS = 16  # that `center` adds up in turn
AT_ONCE = 32  # numbers that a `counter` takes
_FAR = 4096.0  # of all limits


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
    """``f(x, at, scale, codes, to)``: of the `AT_ONCE` float32 numbers of ``x`` from ``at`` on,
    times ``scale``, how many ``limits`` each is above, to ``codes`` from ``to`` on, uint8.

    ``limits`` are halves of whole numbers. A number is above a limit if twice the number, rounded
    up, is above twice the limit: so 16 bits are compared. As many limits are below the one in the
    middle, which is 0, as above: so magnitudes are compared, with half as many. Of a number that is
    not above 0 its magnitude and one: it is above a limit that it equals.
    """
    middle = len(limits) // 2
    doubles = [int(2 * abs(limit)) for limit in limits]
    pairs = list(zip(doubles[middle + 1 :], doubles[:middle][::-1], strict=True))
    assert all(float(2 * limit).is_integer() for limit in limits)
    assert max(doubles) < _FAR
    assert doubles[middle] == 0
    assert list(limits) == sorted(limits)

    @intrinsic
    def count(_: Any, x: Any, at: Any, scale: Any, codes: Any, to: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            def each(vector: Any, value: float) -> Any:
                return ir.Constant(vector, [value] * AT_ONCE)

            numbers = places(context, builder, (x, args[0]), args[1], AT_ONCE).load(0)
            floats, shorts = numbers.type, ir.VectorType(ir.IntType(16), AT_ONCE)
            numbers = builder.fmul(numbers, splat(builder, args[2], AT_ONCE))
            numbers = builder.fadd(numbers, numbers)
            kind = ir.FunctionType(floats, [floats])
            ceil = cgutils.get_or_insert_function(builder.module, kind, f"llvm.ceil.v{AT_ONCE}f32")
            numbers = builder.call(ceil, [numbers])
            for sign, limit in ((">", -_FAR), ("<", _FAR)):  # what is no number is below all
                inside = builder.fcmp_ordered(sign, numbers, each(floats, limit))
                numbers = builder.select(inside, numbers, each(floats, limit))
            whole = builder.fptosi(numbers, ir.VectorType(ir.IntType(32), AT_ONCE))
            size = builder.trunc(whole, shorts)
            positive = builder.icmp_signed(">", size, each(shorts, 0))
            size = builder.select(positive, size, builder.sub(each(shorts, 1), size))
            total = each(shorts, 0)
            for up, down in pairs:
                limit = each(shorts, up)
                if up != down:
                    limit = builder.select(positive, limit, each(shorts, down))
                over = builder.icmp_signed(">", size, limit)
                total = builder.sub(total, builder.sext(over, shorts))  # all ones are -1
            high = builder.add(each(shorts, middle + 1), total)
            total = builder.select(positive, high, builder.sub(each(shorts, middle), total))
            small = builder.trunc(total, ir.VectorType(ir.IntType(8), AT_ONCE))
            places(context, builder, (codes, args[3]), args[4], AT_ONCE).store(0, small)
            return context.get_dummy_value()

        return types.void(x, at, scale, codes, to), generate

    return count


def _center(_: Any, x: Any, at: Any, count: Any, mean: Any, of: Any) -> Any:
    """``f(x, at, count, mean, of)``: take away ``mean`` from ``of`` on; the sum of the squares of
    what is left, ``count`` numbers, whole vectors of `SUMS`. The same sum on every processor."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        total = cgutils.alloca_once_value(
            builder, ir.Constant(ir.VectorType(ir.FloatType(), SUMS), [0.0] * SUMS)
        )
        steps = builder.udiv(args[2], args[2].type(SUMS))
        with cgutils.for_range(builder, steps) as loop:
            there = builder.mul(loop.index, args[2].type(SUMS))
            place = places(context, builder, (x, args[0]), builder.add(args[1], there), SUMS)
            other = places(context, builder, (mean, args[3]), builder.add(args[4], there), SUMS)
            rest = builder.fsub(place.load(0), other.load(0))
            place.store(0, rest)
            square = builder.fmul(rest, rest)
            builder.store(builder.fadd(builder.load(total), square), total)
        vector, left = builder.load(total), SUMS // 2
        while left:
            low = shuffled(builder, (vector, vector), range(left))
            high = shuffled(builder, (vector, vector), range(left, 2 * left))
            vector, left = builder.fadd(low, high), left // 2
        return builder.extract_element(vector, _LANE(0))

    return types.float32(x, at, count, mean, of), generate


center: Any = intrinsic(_center)


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
    register = _WIDE if has(context, "avx512bw") else _REGISTER
    return register // int(context.get_abi_sizeof(number))


def has(context: Any, feature: str) -> bool:
    """Whether there is code made for processors with ``feature``."""
    return f"+{feature}" in context.codegen().magic_tuple()[2].split(",")


def splat(builder: Any, number: Any, lanes: int) -> Any:
    """A vector of ``lanes`` times ``number``."""
    vector = ir.Constant(ir.VectorType(number.type, lanes), ir.Undefined)
    single = builder.insert_element(vector, number, _LANE(0))
    return shuffled(builder, (single, single), [0] * lanes)


def shuffled(builder: Any, pair: tuple[Any, Any], of: Sequence[int]) -> Any:
    """Numbers ``of`` a pair of vectors."""
    mask = ir.Constant(ir.VectorType(_LANE, len(of)), list(of))
    return builder.shuffle_vector(*pair, mask)


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


def parted_hadamard(builder: Any, vectors: list[Any]) -> list[Any]:
    """Of `CHUNK` numbers of 16 bits, the even ones first; what comes out is in order.

    As `hadamard`, but the lowest bit tells vectors apart from the start, so that after all turns
    every bit is where it belongs, and none is turned back.
    """
    lanes, half = vectors[0].type.count, len(vectors) // 2
    quarter = _QUARTER // 2
    pairs = [[start + at for at in (0, 1, 4, 5)] for start in range(0, lanes, quarter)]
    doubles = [at for start in pairs for at in (*start, *(lanes + one for one in start))]
    out = []
    for both in zip(vectors[:half], vectors[half:], strict=True):
        pair = list(both)
        butterflies(builder, pair, 1)
        pair = _swapped(builder, *pair)
        butterflies(builder, pair, 1)
        for low, step, places_ in (
            (doubles, 2, quarter // 2),
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


def _even(lanes: int, size: int) -> list[int]:
    """Every other run of ``size`` places of a pair of vectors."""
    return [start + at for start in range(0, 2 * lanes, 2 * size) for at in range(size)]


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


def _swapped(builder: Any, one: Any, two: Any) -> list[Any]:
    """Even places of both, of 16 bits, to one vector and odd to the other: no shuffle."""
    words = ir.VectorType(_LANE, one.type.count // 2)
    half, low = (ir.Constant(words, [value] * words.count) for value in (16, 0xFFFF))
    first, second = (builder.bitcast(at, words) for at in (one, two))
    even = builder.or_(builder.and_(first, low), builder.shl(second, half))
    odd = builder.or_(builder.lshr(first, half), builder.and_(second, builder.not_(low)))
    return [builder.bitcast(at, one.type) for at in (even, odd)]
