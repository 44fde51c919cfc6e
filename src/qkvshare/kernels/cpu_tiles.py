"""The products of attention, as whole vectors: what is summed stays in registers.

Of a block of `BLOCK` tokens the keys are transposed, so that scores of neighbouring tokens lie side
by side, and a product with a query needs no sum across a vector. Up to `ROWS` rows are taken at
once, since a key or a value that is loaded serves all of them. Everything is float32, by address.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from .cpu_memory import OFFSET, Memory
from .cpu_vectors import cgutils, lanes_of, shuffled, splat

BLOCK = 64  # tokens
ROWS = 4
_AHEAD = 32  # tokens, of memory that is on its way


def of_vectors(builder: Any, name: str, *vectors: Any) -> Any:
    """What LLVM calls ``name``."""
    kind = vectors[0].type
    suffix = f"v{kind.count}f32" if isinstance(kind, ir.VectorType) else "f32"
    function = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(kind, [kind] * len(vectors)), f"llvm.{name}.{suffix}"
    )
    return builder.call(function, vectors)


def _transpose(_: Any, keys: Any, apart: Any, dim: Any, to: Any) -> Any:
    """``f(keys, apart, dim, to)``: `BLOCK` keys of ``dim`` numbers, ``apart`` numbers, to
    ``[dim, BLOCK]``."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        lanes = lanes_of(context, ir.FloatType())
        source, there = (Memory(builder, args[n], lanes) for n in (0, 3))
        apart_, dim_, wide = args[1], args[2], OFFSET(lanes)
        with cgutils.for_range(builder, OFFSET(BLOCK // lanes)) as group:
            token = builder.mul(group.index, wide)
            first = builder.mul(token, apart_)
            with cgutils.for_range(builder, builder.udiv(dim_, wide)) as loop:
                start, rows = builder.mul(loop.index, wide), []
                for n in range(lanes):
                    row = builder.add(first, builder.mul(apart_, OFFSET(n)))
                    at = builder.add(row, start)
                    source.fetch(builder.add(at, builder.mul(apart_, OFFSET(_AHEAD))))
                    rows.append(source.load(at))
                for n, column in enumerate(_transposed(builder, rows)):
                    at = builder.mul(builder.add(start, OFFSET(n)), OFFSET(BLOCK))
                    there.store(builder.add(at, token), column)
        return context.get_dummy_value()

    return types.void(keys, apart, dim, to), generate


transpose: Any = intrinsic(_transpose)


def _transposed(builder: Any, vectors: list[Any]) -> list[Any]:
    """As many as lanes: number ``i`` of the ``j``-th becomes number ``j`` of the ``i``-th."""
    out, lanes, bit = list(vectors), len(vectors), 1
    while bit < lanes:
        low = [lanes + (j ^ bit) if j & bit else j for j in range(lanes)]
        high = [lanes + j if j & bit else j | bit for j in range(lanes)]
        for i in range(lanes):
            if not i & bit:
                pair = out[i], out[i | bit]
                out[i], out[i | bit] = (shuffled(builder, pair, of) for of in (low, high))
        bit *= 2
    return out


def scorer(rows: int) -> Any:
    """``f(queries, dim, keys, to)``: ``rows`` queries, one behind the other, times a block of
    transposed keys; to ``[rows, BLOCK]``."""

    @intrinsic
    def score(_: Any, queries: Any, dim: Any, keys: Any, to: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            lanes = lanes_of(context, ir.FloatType())
            query = Memory(builder, args[0])
            key, there = (Memory(builder, args[n], lanes) for n in (2, 3))
            for start in range(0, BLOCK, lanes * _at_once(lanes)):
                sums = _Sums(builder, rows, lanes)
                for of in sums.vectors:
                    for one in of:
                        builder.store(ir.Constant(key.kind, [0.0] * lanes), one)
                with cgutils.for_range(builder, args[1]) as loop:
                    at = builder.add(builder.mul(loop.index, OFFSET(BLOCK)), OFFSET(start))
                    places = [
                        builder.add(loop.index, builder.mul(args[1], OFFSET(row)))
                        for row in range(rows)
                    ]
                    sums.add([query.load(place) for place in places], key, at)
                for row, of in enumerate(sums.vectors):
                    for n, one in enumerate(of):
                        there.store(row * BLOCK + start + n * lanes, builder.load(one))
            return context.get_dummy_value()

        return types.void(queries, dim, keys, to), generate

    return score


def gatherer(rows: int) -> Any:
    """``f(weights, values, apart, count, shrink, out, dim)``, of ``rows`` rows: ``out`` times
    ``shrink``, and ``count`` values, ``apart`` numbers, times their ``weights [rows, BLOCK]``."""

    @intrinsic
    def gather(
        _: Any, weights: Any, values: Any, apart: Any, count: Any, shrink: Any, out: Any, dim: Any
    ) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            lanes = lanes_of(context, ir.FloatType())
            weight, factor = (Memory(builder, args[n]) for n in (0, 4))
            value, there = (Memory(builder, args[n], lanes) for n in (1, 5))
            apart_, wide = args[2], OFFSET(lanes * _at_once(lanes))
            sums = _Sums(builder, rows, lanes)
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
                    later = builder.add(at, builder.mul(apart_, OFFSET(_AHEAD)))
                    for n in range(_at_once(lanes)):
                        value.fetch(builder.add(later, OFFSET(n * lanes)))
                    places = [builder.add(loop.index, OFFSET(row * BLOCK)) for row in range(rows)]
                    sums.add([weight.load(place) for place in places], value, at)
                for row, of in enumerate(sums.vectors):
                    for n, one in enumerate(of):
                        there.store(place(row, n), builder.load(one))
            return context.get_dummy_value()

        return types.void(weights, values, apart, count, shrink, out, dim), generate

    return gather


class _Sums:
    """Vectors of each row, which LLVM keeps in registers."""

    def __init__(self, builder: Any, rows: int, lanes: int) -> None:
        self.builder, self.lanes = builder, lanes
        kind = ir.VectorType(ir.FloatType(), lanes)
        self.vectors = [
            [cgutils.alloca_once(builder, kind) for _ in range(_at_once(lanes))]
            for _ in range(rows)
        ]

    def add(self, numbers: list[Any], memory: Memory, at: Any) -> None:
        """Each row's number times what is in ``memory`` from ``at`` on."""
        builder, lanes = self.builder, self.lanes
        loaded = [memory.load(builder.add(at, OFFSET(n * lanes))) for n in range(_at_once(lanes))]
        for number, of in zip(numbers, self.vectors, strict=True):
            factor = splat(builder, number, lanes)
            for vector, one in zip(loaded, of, strict=True):
                total = of_vectors(builder, "fmuladd", factor, vector, builder.load(one))
                builder.store(total, one)


def _at_once(lanes: int) -> int:
    """Vectors, of each of `ROWS` rows, that there are registers for."""
    return lanes // 4
