"""What encoders ask of a row's numbers, as vectors: codes, and the energy about a mean."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from .cpu_vectors import cgutils, places, shuffled, splat

SUMS = 16  # that `center` adds up in turn
AT_ONCE = 32  # numbers that a `counter` takes
_FAR = 4096.0  # of all limits
_LANE = ir.IntType(32)


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
