"""Memory by its address: arrays that nobody owns, vectors, counters that threads share.

Whoever calls keeps what the addresses are of.
"""

from __future__ import annotations

from typing import Any

import numba
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from .compiling import part
from .cpu_vectors import cgutils, has

_BYTE, _HALF, _WORD, OFFSET = (ir.IntType(bits) for bits in (8, 16, 32, 64))
_FLOAT = ir.FloatType()


@intrinsic
def _pointer(_: Any, address: Any, like: Any) -> Any:
    """``address`` as that of numbers such as ``like`` has."""
    kind: Any = types.CPointer(like.dtype)  # type: ignore[no-untyped-call]

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], context.get_value_type(kind))

    return kind(address, like), generate


@part
def array_at(address: Any, size: Any, like: Any) -> Any:
    """``size`` numbers such as ``like`` has, from ``address`` on."""
    return numba.carray(_pointer(address, like), (size,))  # type: ignore


@part
def borrowed(array: Any) -> Any:
    """The same array without an owner: at every call Numba counts references, which takes as long
    as a row."""
    return array_at(array.ctypes.data, array.size, array)


def _count_on(_: Any, address: Any) -> Any:
    """``f(address)``: the int64 there; it is one more from then on, whoever else does the same."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        place = builder.inttoptr(args[0], OFFSET.as_pointer())
        return builder.atomic_rmw("add", place, OFFSET(1), "seq_cst")

    return types.int64(address), generate


count_on: Any = intrinsic(_count_on)


def _seen(_: Any, address: Any) -> Any:
    """``f(address)``: the int64 there, and what whoever wrote it wrote before."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        place = builder.inttoptr(args[0], OFFSET.as_pointer())
        return builder.load_atomic(place, "acquire", 8)

    return types.int64(address), generate


seen: Any = intrinsic(_seen)


def _claim(_: Any, address: Any, found: Any) -> Any:
    """``f(address, found)``: whether the int64 there was still ``found``; then it is one more."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        place = builder.inttoptr(args[0], OFFSET.as_pointer())
        more = builder.add(args[1], OFFSET(1))
        tried = builder.cmpxchg(place, args[1], more, "seq_cst", "seq_cst")
        return builder.extract_value(tried, 1)

    return types.boolean(address, found), generate


claim: Any = intrinsic(_claim)


def _rest(_: Any) -> Any:
    """``f()``: a moment without work, for a thread that waits for another one."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        if has(context, "sse2"):
            name, kind = "llvm.x86.sse2.pause", ir.FunctionType(ir.VoidType(), [])
            builder.call(cgutils.get_or_insert_function(builder.module, kind, name), [])
        return context.get_dummy_value()

    return types.void(), generate


rest: Any = intrinsic(_rest)


def _as_float(_: Any, bits: Any) -> Any:
    """``f(bits)``: the float32 that the lower half of an int64 is."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(builder.trunc(args[0], _WORD), _FLOAT)

    return types.float32(bits), generate


as_float: Any = intrinsic(_as_float)


def _float_at(_: Any, address: Any) -> Any:
    """``f(address)``: the float32 there."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return Memory(builder, args[0]).load(0)

    return types.float32(address), generate


float_at: Any = intrinsic(_float_at)


class Memory:
    """Float32 from ``address`` on, in vectors of ``lanes``, or one by one; places are counted in
    numbers, and are constants or LLVM's."""

    number, wide = _FLOAT, 4  # bytes

    def __init__(self, builder: Any, address: Any, lanes: int = 1) -> None:
        self.builder, self.lanes = builder, lanes
        self.first = builder.inttoptr(address, self.number.as_pointer())
        self.kind = self.number if lanes == 1 else ir.VectorType(self.number, lanes)

    def load(self, at: Any) -> Any:
        """From ``at`` on."""
        found = self.builder.load(self._place(at))
        found.align = 4
        return found

    def store(self, at: Any, vector: Any) -> None:
        """From ``at`` on."""
        self.builder.store(vector, self._place(at)).align = 4

    def fetch(self, at: Any) -> None:
        """Have what is ``at`` come, to be read later."""
        fetch(self.builder, self._place(at), to_write=False)

    def _place(self, at: Any) -> Any:
        offset = at if isinstance(at, ir.Value) else OFFSET(at)
        return self.builder.bitcast(self.builder.gep(self.first, [offset]), self.kind.as_pointer())


class Halves(Memory):
    """Bfloat16, the upper halves of float32, which is what `load` gives."""

    number, wide = _HALF, 2

    def load(self, at: Any) -> Any:
        """From ``at`` on."""
        builder, words = self.builder, ir.VectorType(_WORD, self.lanes)
        found = builder.load(self._place(at))
        found.align = 2
        whole = builder.shl(builder.zext(found, words), ir.Constant(words, [16] * self.lanes))
        return builder.bitcast(whole, ir.VectorType(_FLOAT, self.lanes))


def fetch(builder: Any, place: Any, to_write: bool) -> None:
    """Have the cache line that a pointer is to come."""
    byte = _BYTE.as_pointer()
    kind = ir.FunctionType(ir.VoidType(), [byte, _WORD, _WORD, _WORD])
    function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
    where = builder.bitcast(place, byte)
    builder.call(function, [where, _WORD(int(to_write)), _WORD(3), _WORD(1)])
