"""Vector code by hand, where LLVM would not make it of loops: what all of it is made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from llvmlite import ir
from numba.core import cgutils as _cgutils

cgutils: Any = _cgutils  # it has no types
_REGISTER, _WIDE = 32, 64  # bytes; vectors are wide where the processor has them
_LANE, _OFFSET = ir.IntType(32), ir.IntType(64)


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


def of_vectors(builder: Any, name: str, *vectors: Any) -> Any:
    """What LLVM calls ``name``."""
    kind = vectors[0].type
    suffix = f"v{kind.count}f32" if isinstance(kind, ir.VectorType) else "f32"
    function = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(kind, [kind] * len(vectors)), f"llvm.{name}.{suffix}"
    )
    return builder.call(function, vectors)


def transposed(builder: Any, vectors: list[Any]) -> list[Any]:
    """As many as lanes: number ``i`` of the ``j``-th becomes number ``j`` of the ``i``-th."""
    out, lanes, bit = list(vectors), len(vectors), 1
    while bit < lanes:
        low, high = _pairs(lanes, bit)
        for i in range(lanes):
            if not i & bit:
                pair = out[i], out[i | bit]
                out[i], out[i | bit] = (shuffled(builder, pair, of) for of in (low, high))
        bit *= 2
    return out


def summed(builder: Any, vectors: list[Any]) -> Any:
    """Of as many as lanes: each one's sum, in its place."""
    lanes, bit = len(vectors), 1
    while bit < lanes:
        low, high = _pairs(lanes, bit)
        vectors = [
            builder.fadd(
                *(shuffled(builder, (vectors[n], vectors[n + 1]), of) for of in (low, high))
            )
            for n in range(0, len(vectors), 2)
        ]
        bit *= 2
    return vectors[0]


def _pairs(lanes: int, bit: int) -> tuple[list[int], list[int]]:
    """What exchanges index bit ``bit`` within two vectors with the bit that tells them apart."""
    low = [lanes + (j ^ bit) if j & bit else j for j in range(lanes)]
    return low, [lanes + j if j & bit else j | bit for j in range(lanes)]
