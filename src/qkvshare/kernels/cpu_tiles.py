"""The products of attention, as whole vectors: what is summed stays in registers.

Of a block of `BLOCK` tokens the keys are transposed for many rows, so that scores of neighbouring
tokens lie side by side, and a product with a query needs no sum across a vector. Up to `ROWS` rows
are taken at once, since a key or a value that is loaded serves all of them. Everything is float32,
by address; keys and values are of any kind of `Memory`.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from .cpu_memory import OFFSET, Memory
from .cpu_vectors import cgutils, lanes_of, of_vectors, splat, summed, transposed

BLOCK = 64  # tokens
ROWS = 4
# Memory that is on its way. For many rows it comes little by little in all that is done with a
# block: a product that asks for more than can be under way at once has to wait.
_AHEAD = 32  # tokens
SOON = 32  # bytes


def transposer(kind: type[Memory], many: bool) -> Any:
    """``f(keys, apart, dim, to)``: `BLOCK` keys of ``dim`` numbers, ``apart`` numbers, to
    ``[dim, BLOCK]``. Meanwhile later keys come, unless they do so while there is more to do with
    the ``many`` rows that these are for."""

    @intrinsic
    def transpose(_: Any, keys: Any, apart: Any, dim: Any, to: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            lanes = lanes_of(context, ir.FloatType())
            source, there = kind(builder, args[0], lanes), Memory(builder, args[3], lanes)
            apart_, dim_, wide = args[1], args[2], OFFSET(lanes)
            with cgutils.for_range(builder, OFFSET(BLOCK // lanes)) as group:
                token = builder.mul(group.index, wide)
                first = builder.mul(token, apart_)
                with cgutils.for_range(builder, builder.udiv(dim_, wide)) as loop:
                    start, rows = builder.mul(loop.index, wide), []
                    for n in range(lanes):
                        row = builder.add(first, builder.mul(apart_, OFFSET(n)))
                        at = builder.add(row, start)
                        if not many:
                            source.fetch(builder.add(at, builder.mul(apart_, OFFSET(_AHEAD))))
                        rows.append(source.load(at))
                    for n, column in enumerate(transposed(builder, rows)):
                        at = builder.mul(builder.add(start, OFFSET(n)), OFFSET(BLOCK))
                        there.store(builder.add(at, token), column)
            return context.get_dummy_value()

        return types.void(keys, apart, dim, to), generate

    return transpose


def dotter(rows: int, kind: type[Memory]) -> Any:
    """``f(queries, keys, apart, dim, to)``: what `transposer` and `scorer` do, for so few rows that
    to sum across vectors costs less than to transpose; keys are read in their order."""

    @intrinsic
    def dot(_: Any, queries: Any, keys: Any, apart: Any, dim: Any, to: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            lanes = lanes_of(context, ir.FloatType())
            query, there = (Memory(builder, args[n], lanes) for n in (0, 4))
            key, apart_, dim_, wide = kind(builder, args[1], lanes), args[2], args[3], OFFSET(lanes)
            # Of as many tokens as a vector has numbers, what is to be summed.
            alike = ir.ArrayType(ir.ArrayType(query.kind, lanes), rows)
            parts = cgutils.alloca_once(builder, alike)

            def part(row: int, token: Any) -> Any:
                return builder.gep(parts, [OFFSET(0), OFFSET(row), token])

            with cgutils.for_range(builder, OFFSET(BLOCK // lanes)) as group:
                first = builder.mul(group.index, wide)
                with cgutils.for_range(builder, wide) as token:
                    at = builder.mul(builder.add(first, token.index), apart_)
                    later = builder.add(at, builder.mul(apart_, OFFSET(_AHEAD)))
                    sums = _Sums(builder, rows, lanes, 1)
                    sums.clear()
                    with cgutils.for_range(builder, builder.udiv(dim_, wide)) as loop:
                        start = builder.mul(loop.index, wide)
                        key.fetch(builder.add(later, start))
                        own = [
                            query.load(builder.add(start, builder.mul(dim_, OFFSET(row))))
                            for row in range(rows)
                        ]
                        sums.add(own, key, builder.add(at, start))
                    for row, (one,) in enumerate(sums.vectors):
                        builder.store(builder.load(one), part(row, token.index))
                for row in range(rows):
                    vectors = [builder.load(part(row, OFFSET(n))) for n in range(lanes)]
                    there.store(builder.add(first, OFFSET(row * BLOCK)), summed(builder, vectors))
            return context.get_dummy_value()

        return types.void(queries, keys, apart, dim, to), generate

    return dot


def scorer(rows: int) -> Any:
    """``f(queries, dim, keys, to, soon)``: ``rows`` queries, one behind the other, times a block of
    transposed keys; to ``[rows, BLOCK]``. Meanwhile memory from ``soon`` on comes, `SOON` bytes for
    each of ``dim``."""

    @intrinsic
    def score(_: Any, queries: Any, dim: Any, keys: Any, to: Any, soon: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            lanes = lanes_of(context, ir.FloatType())
            query, coming = Memory(builder, args[0]), Memory(builder, args[4])
            key, there = (Memory(builder, args[n], lanes) for n in (2, 3))
            for start in range(0, BLOCK, lanes * _at_once(lanes)):
                sums = _Sums(builder, rows, lanes, _at_once(lanes))
                sums.clear()
                with cgutils.for_range(builder, args[1]) as loop:
                    if start == 0:
                        coming.fetch(builder.mul(loop.index, OFFSET(SOON // 4)))
                    at = builder.add(builder.mul(loop.index, OFFSET(BLOCK)), OFFSET(start))
                    places = [
                        builder.add(loop.index, builder.mul(args[1], OFFSET(row)))
                        for row in range(rows)
                    ]
                    sums.add(
                        [splat(builder, query.load(place), lanes) for place in places], key, at
                    )
                for row, of in enumerate(sums.vectors):
                    for n, one in enumerate(of):
                        there.store(row * BLOCK + start + n * lanes, builder.load(one))
            return context.get_dummy_value()

        return types.void(queries, dim, keys, to, soon), generate

    return score


def gatherer(rows: int, kind: type[Memory], many: bool) -> Any:
    """``f(weights, values, apart, count, shrink, out, dim, soon)``, of ``rows`` rows: ``out`` times
    ``shrink``, and ``count`` values, ``apart`` numbers, times their ``weights [rows, BLOCK]``.

    Meanwhile later values come, or of ``many`` rows memory from ``soon`` on, `SOON` bytes for each
    value.
    """

    @intrinsic
    def gather(
        _: Any, weights: Any, values: Any, apart: Any, count: Any, shrink: Any, out: Any, dim: Any,
        soon: Any,
    ) -> Any:  # fmt: skip
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            lanes = lanes_of(context, ir.FloatType())
            weight, factor = (Memory(builder, args[n]) for n in (0, 4))
            value, there = kind(builder, args[1], lanes), Memory(builder, args[5], lanes)
            coming = Memory(builder, args[7])
            apart_, wide = args[2], OFFSET(lanes * _at_once(lanes))
            sums = _Sums(builder, rows, lanes, _at_once(lanes))
            with cgutils.for_range(builder, builder.udiv(args[6], wide)) as column:
                start = builder.mul(column.index, wide)

                def place(row: int, n: int) -> Any:
                    at = builder.add(start, builder.mul(args[6], OFFSET(row)))
                    return builder.add(at, OFFSET(n * lanes))

                for row, of in enumerate(sums.vectors):
                    before = splat(builder, factor.load(row), lanes)
                    for n, one in enumerate(of):
                        builder.store(builder.fmul(there.load(place(row, n)), before), one)
                with cgutils.for_range(builder, args[3]) as loop:
                    at = builder.add(builder.mul(loop.index, apart_), start)
                    if not many:
                        later = builder.add(at, builder.mul(apart_, OFFSET(_AHEAD)))
                        for n in range(_at_once(lanes)):
                            value.fetch(builder.add(later, OFFSET(n * lanes)))
                    else:
                        coming.fetch(builder.mul(loop.index, OFFSET(SOON // 4)))
                    places = [builder.add(loop.index, OFFSET(row * BLOCK)) for row in range(rows)]
                    sums.add(
                        [splat(builder, weight.load(place), lanes) for place in places], value, at
                    )
                for row, of in enumerate(sums.vectors):
                    for n, one in enumerate(of):
                        there.store(place(row, n), builder.load(one))
            return context.get_dummy_value()

        return types.void(weights, values, apart, count, shrink, out, dim, soon), generate

    return gather


class _Sums:
    """Vectors of each row, ``count``, which LLVM keeps in registers."""

    def __init__(self, builder: Any, rows: int, lanes: int, count: int) -> None:
        self.builder, self.lanes = builder, lanes
        self.kind = ir.VectorType(ir.FloatType(), lanes)
        self.vectors = [
            [cgutils.alloca_once(builder, self.kind) for _ in range(count)] for _ in range(rows)
        ]

    def clear(self) -> None:
        """Nothing is summed yet."""
        for of in self.vectors:
            for one in of:
                self.builder.store(ir.Constant(self.kind, [0.0] * self.lanes), one)

    def add(self, factors: list[Any], memory: Memory, at: Any) -> None:
        """Each row's vector of factors times what is in ``memory`` from ``at`` on."""
        builder = self.builder
        loaded = [
            memory.load(builder.add(at, OFFSET(n * self.lanes)))
            for n in range(len(self.vectors[0]))
        ]
        for factor, of in zip(factors, self.vectors, strict=True):
            for vector, one in zip(loaded, of, strict=True):
                total = of_vectors(builder, "fmuladd", factor, vector, builder.load(one))
                builder.store(total, one)


def _at_once(lanes: int) -> int:
    """Vectors, of each of `ROWS` rows, that there are registers for."""
    return lanes // 4
