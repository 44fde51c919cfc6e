"""Chunks of one part, range decoded by all of torch's threads: each takes the next, as long as
there are any."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numba
import numpy as np

from ..card.digest import Bytes
from .cpu_memory import array_at, count_on
from .rans import SYMBOLS, TOTAL, decode
from .torch_threads import for_threads, on_all

# What threads are given, and what there is of a chunk: addresses and sizes, all int64.
_FIELDS = (
    "next", "count", "chunks", "dim", "variants", "classes",
    "rows", "table", "lookup", "points", "units", "out", "activity",
)  # fmt: skip
_OWN = ("words", "size", "states", "escapes", "far", "start", "stop", "even")
ORDER, CHUNK = (np.dtype([(name, np.int64) for name in of]) for of in (_FIELDS, _OWN))


def work(pointer: Any) -> None:
    """Whatever is left to do, by one thread."""
    orders = numba.carray(pointer, (1,), ORDER)  # type: ignore[attr-defined]
    order, first, dim = orders[0], np.int64(orders.ctypes.data), orders[0].dim
    bytes_, words = np.empty(0, np.uint8), np.empty(0, np.uint16)
    ints, floats = np.empty(0, np.int32), np.empty(0, np.float32)
    slots, states = np.empty(0, np.uint32), np.empty(0, np.uint64)
    table = array_at(order.table, order.variants * dim, ints).reshape((order.variants, dim))
    lookup = array_at(order.lookup, order.classes * TOTAL, slots)
    points = array_at(order.points, order.classes * SYMBOLS, floats)
    points_of = points.reshape((order.classes, SYMBOLS))
    chunks = array_at(order.chunks, order.count, np.empty(0, CHUNK))
    while True:
        number = count_on(first)
        if number >= order.count:
            break
        chunk = chunks[number]
        start, tokens = chunk.start, chunk.stop - chunk.start
        chunk.even = decode(
            array_at(chunk.words, chunk.size, words),
            array_at(chunk.states, 4, states),
            array_at(chunk.escapes, chunk.far, bytes_),
            array_at(order.rows + 4 * start, tokens, ints),
            table,
            lookup,
            points_of,
            array_at(order.units + 4 * start, tokens, floats),
            array_at(order.out + 4 * start * dim, tokens * dim, floats).reshape((tokens, dim)),
            array_at(order.activity + 4 * start, tokens, ints),
        )


def decode_chunks(
    chunks: Sequence[tuple[Any, Any, Bytes, slice]], rows: Any, table: Any, lookup: Any,
    points: Any, units: Any, out: Any, activity: Any,
) -> bool:  # fmt: skip
    """`rans.decode` of ``chunks``: words, states, escapes, which tokens; the rest is of all tokens.
    Returns whether all came out even. Numbers in ``rows`` and ``table`` are the caller's to check.
    """
    given = [
        np.ascontiguousarray(array, kind)
        for array, kind in (
            (rows, np.int32),
            (table, np.int32),
            (lookup, np.uint32),
            (points, np.float32),
            (units, np.float32),
        )
    ]
    for array, kind in ((out, np.float32), (activity, np.int32)):
        assert array.dtype == kind
        assert array.flags.c_contiguous
    # What is read by address must be there.
    assert table.shape[1:] == out.shape[1:]
    assert lookup.size == len(points) * TOTAL
    assert points.shape[1:] == (SYMBOLS,)
    assert len(rows) == len(units) == len(activity) == len(out)
    assert all(0 <= at.start <= at.stop <= len(out) for *_, at in chunks)
    held, found = [np.ascontiguousarray(each[2]) for each in chunks], np.zeros(len(chunks), CHUNK)
    for number, ((words, states, _, at), escapes) in enumerate(zip(chunks, held, strict=True)):
        places = words.ctypes.data, words.size, states.ctypes.data, escapes.ctypes.data
        found[number] = (*places, escapes.size, at.start, at.stop, 0)
    order = np.zeros(1, ORDER)
    sizes = len(chunks), found.ctypes.data, out.shape[1], len(table), len(points)
    addresses = (array.ctypes.data for array in (*given, out, activity))
    order[0] = (0, *sizes, *addresses)
    on_all(_compiled(), order.ctypes.data, len(chunks))
    return bool(found["even"].all())


@cache
def _compiled() -> Any:
    return for_threads(work)
