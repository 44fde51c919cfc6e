"""What a thread does of `cpu_attention`: units, which are parts of one head's tokens, as long as
there are any."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numba.extending import register_jitable

from .compiling import part
from .cpu_memory import Halves, Memory, array_at, as_float, count_on
from .cpu_merge import LINE, kept_of, merge
from .cpu_softmax import LOWEST, weigh
from .cpu_tiles import BLOCK, ROWS, SOON, dotter, gatherer, scorer, transposer

PART = 512  # tokens; whole blocks
_MANY = 3 * ROWS  # rows that are work enough for memory to come meanwhile
# What threads are given, all int64; strides are in numbers. ``tokens`` are numbers, the ``first``
# ones before them ``pieces`` of ``codes``, see `cpu_coded`.
_FIELDS = (
    "next", "done", "units", "parts", "kv_heads", "group", "new", "tokens", "dim",
    "query", "query_batch", "query_head", "query_new",
    "key", "key_batch", "key_head", "key_token",
    "value", "value_batch", "value_head", "value_token",
    "mask", "mask_batch", "mask_new", "out", "kept", "scale", "first", "pieces", "codes", "wide",
)  # fmt: skip
ORDER = np.dtype([(name, np.int64) for name in _FIELDS])
_score1, _score2, _score3, _score4 = map(scorer, range(1, ROWS + 1))


def work(pointer: Any) -> None:
    """Whatever is left to do, by one thread; who is ready last puts the parts together."""
    orders = numba.carray(pointer, (1,), ORDER)  # type: ignore[attr-defined]
    order, first = orders[0], np.int64(orders.ctypes.data)
    room = np.empty(room_of(order.group * order.new, order.dim), np.float32)
    spaces, floats = spaces_of(room, order), np.empty(0, np.float32)
    while True:
        unit = count_on(first)
        if unit >= order.units:
            break
        attend_numbers(order, unit, unit % order.parts * PART, spaces, floats)
        if count_on(first + 8) == order.units - 1:
            merge(order, floats)
    room[0] = 0  # it is kept until here


@register_jitable
def room_of(rows: Any, dim: Any) -> Any:
    """Numbers that a thread needs beside what it reads and writes."""
    return 2 * BLOCK * dim + rows * (BLOCK + dim + 3) + LINE // 4


@register_jitable
def spaces_of(room: Any, order: Any) -> Any:
    """In ``room``: of a block transposed keys, scores, and whatever ends within it; queries; what
    `weigh` keeps."""
    rows, dim = order.group * order.new, order.dim
    keys = (np.int64(room.ctypes.data) + LINE - 1) // LINE * LINE
    scores = keys + 4 * BLOCK * dim
    spare = scores + 4 * rows * BLOCK
    queries = spare + 4 * BLOCK * dim
    return keys, scores, spare, queries, queries + 4 * rows * dim


@part
def attend_numbers(order: Any, unit: Any, start: Any, spaces: Any, floats: Any) -> None:
    """To the tokens that are numbers, from ``start`` on."""
    dim, spare, wide = order.dim, spaces[2], order.wide
    batch, head, to = begin(order, unit, spaces, floats)
    key = order.key + wide * (batch * order.key_batch + head * order.key_head)
    value = order.value + wide * (batch * order.value_batch + head * order.value_head)
    stop = min(order.tokens, start + PART)
    for token in range(start, stop, BLOCK):
        count, apart = min(BLOCK, stop - token), order.key_token
        at, there = key + wide * token * apart, value + wide * token * order.value_token
        if count < BLOCK:  # what is behind them is not ours to read
            _pad(at, wide * apart, wide * dim, count, spare)
            at, apart = spare, dim
        places = at, apart, there, order.value_token, wide
        attend_block(order, batch, order.first + token, count, places, to, spaces, floats)
    finish(order, to, spaces, floats)


@part
def begin(order: Any, unit: Any, spaces: Any, floats: Any) -> Any:
    """The sequence and the KV head of a unit, and where its sums are kept, which are 0."""
    dim, rows = order.dim, order.group * order.new
    batch, head = unit // order.parts // order.kv_heads, unit // order.parts % order.kv_heads
    _scale(order, batch, head, spaces[3], floats)
    to = order.kept + 4 * unit * kept_of(rows, dim)
    kept, known = array_at(to, rows * dim, floats), array_at(spaces[4], 2 * rows, floats)
    kept[:], known[:rows], known[rows:] = 0, LOWEST, 0
    return batch, head, to


@part
def finish(order: Any, to: Any, spaces: Any, floats: Any) -> None:
    """Keep what `merge` must know of a unit beside its sums."""
    rows = order.group * order.new
    known = array_at(to + 4 * rows * order.dim, 2 * rows, floats)
    known[:] = array_at(spaces[4], 2 * rows, floats)


def _products(kind: type[Memory]) -> tuple[Any, Any, Any]:
    """With keys and values of ``kind``: transposed, scores of few rows, sums of any.

    Each kind has functions of its own: in one function for both, LLVM makes worse code of each.
    """
    transpose, transpose_for_many = transposer(kind, False), transposer(kind, True)
    dot1, dot2, dot3, dot4 = (dotter(rows, kind) for rows in range(1, ROWS + 1))
    gather1, gather2, gather3, gather4 = (
        gatherer(rows, kind, False) for rows in range(1, ROWS + 1)
    )
    gather_of_many = gatherer(ROWS, kind, True)

    def transpose_(rows: Any, keys: Any, apart: Any, dim: Any, to: Any) -> None:
        if rows >= _MANY:
            transpose_for_many(keys, apart, dim, to)
        else:
            transpose(keys, apart, dim, to)

    def dot_(rows: Any, queries: Any, keys: Any, apart: Any, dim: Any, to: Any) -> None:
        if rows == 4:
            dot4(queries, keys, apart, dim, to)
        elif rows == 3:
            dot3(queries, keys, apart, dim, to)
        elif rows == 2:
            dot2(queries, keys, apart, dim, to)
        else:
            dot1(queries, keys, apart, dim, to)

    def gather_(
        rows: Any, weights: Any, values: Any, apart: Any, count: Any, shrink: Any, to: Any,
        dim: Any, soon: Any,
    ) -> None:  # fmt: skip
        """``soon`` is 0 but for many rows."""
        if rows == 4 and soon:
            gather_of_many(weights, values, apart, count, shrink, to, dim, soon)
        elif rows == 4:
            gather4(weights, values, apart, count, shrink, to, dim, soon)
        elif rows == 3:
            gather3(weights, values, apart, count, shrink, to, dim, soon)
        elif rows == 2:
            gather2(weights, values, apart, count, shrink, to, dim, soon)
        else:
            gather1(weights, values, apart, count, shrink, to, dim, soon)

    wide = kind.wide
    return part(transpose_, wide), part(dot_, wide), part(gather_, wide)


_transpose, _dot, _gather = _products(Memory)
_transpose_half, _dot_half, _gather_half = _products(Halves)


@part
def attend_block(
    order: Any, batch: Any, token: Any, count: Any, places: Any, to: Any, spaces: Any, floats: Any
) -> None:
    """To ``count`` tokens, the first of which is ``token``, at ``places``: keys, of which there is
    a block, and how far apart they are; values, and how far; how many bytes a number has."""
    new, dim, rows = order.new, order.dim, order.group * order.new
    keys, scores, spare, queries, state = spaces
    key, apart, value, value_apart, wide = places
    if rows <= ROWS and wide == 4:
        _dot(rows, queries, key, apart, dim, scores)
    elif rows <= ROWS:
        _dot_half(rows, queries, key, apart, dim, scores)
    else:
        if wide == 4:
            _transpose(rows, key, apart, dim, keys)
        else:
            _transpose_half(rows, key, apart, dim, keys)
        for r in range(0, rows, ROWS):
            row, soon = scores + 4 * r * BLOCK, value + r // ROWS * SOON * dim
            _score(min(ROWS, rows - r), queries + 4 * r * dim, dim, keys, row, soon)
    for r in range(rows):
        mask = np.int64(0)
        if order.mask:
            own = batch * order.mask_batch + r % new * order.mask_new + token
            mask = order.mask + 4 * own
            if count < BLOCK:
                array_at(spare, count, floats)[:] = array_at(mask, count, floats)
                mask = spare
        weigh(scores + 4 * r * BLOCK, mask, count, state + 4 * r, rows)
    for r in range(0, rows, ROWS):
        row, shrink = scores + 4 * r * BLOCK, state + 4 * (2 * rows + r)
        some, sums, soon = min(ROWS, rows - r), to + 4 * r * dim, np.int64(0)
        if rows >= _MANY:  # the next keys
            soon = key + BLOCK * wide * apart + r // ROWS * SOON * BLOCK
        if wide == 4:
            _gather(some, row, value, value_apart, count, shrink, sums, dim, soon)
        else:
            _gather_half(some, row, value, value_apart, count, shrink, sums, dim, soon)


@part
def _score(rows: Any, queries: Any, dim: Any, keys: Any, to: Any, soon: Any) -> None:
    if rows == 4:
        _score4(queries, dim, keys, to, soon)
    elif rows == 3:
        _score3(queries, dim, keys, to, soon)
    elif rows == 2:
        _score2(queries, dim, keys, to, soon)
    else:
        _score1(queries, dim, keys, to, soon)


@part
def _scale(order: Any, batch: Any, head: Any, queries: Any, floats: Any) -> None:
    """The queries of a KV head, one behind the other, times the scale."""
    new, dim, scale = order.new, order.dim, as_float(order.scale)
    to = array_at(queries, order.group * new * dim, floats)
    for r in range(order.group * new):
        own = (head * order.group + r // new) * order.query_head + r % new * order.query_new
        query = array_at(order.query + 4 * (batch * order.query_batch + own), dim, floats)
        for i in range(dim):
            to[r * dim + i] = query[i] * scale


@part
def _pad(at: Any, apart: Any, size: Any, count: Any, to: Any) -> None:
    """Keys of ``size`` bytes side by side, and nothing behind them."""
    bytes_ = np.empty(0, np.uint8)
    padded = array_at(to, BLOCK * size, bytes_)
    padded[count * size :] = 0
    for token in range(count):
        padded[token * size : (token + 1) * size] = array_at(at + token * apart, size, bytes_)
