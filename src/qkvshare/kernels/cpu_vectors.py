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
