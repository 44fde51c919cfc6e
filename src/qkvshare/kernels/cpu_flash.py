"""What a thread does of `cpu_attention`: parts of the tokens, as long as there are any."""

from __future__ import annotations

import math
from typing import Any

import numba
import numpy as np
from numba.extending import register_jitable

from .compiling import part
from .cpu_memory import array_at, as_float, count_on
from .cpu_softmax import LOWEST, weigh
from .cpu_tiles import BLOCK, ROWS, dotter, gatherer, scorer, transpose

PART = 512  # tokens; whole blocks
LINE = 64  # bytes
# Of what threads are given, all int64; strides are in numbers.
_FIELDS = (
    "next", "done", "units", "parts", "kv_heads", "group", "new", "tokens", "dim",
    "query", "query_batch", "query_head", "query_new",
    "key", "key_batch", "key_head", "key_token",
    "value", "value_batch", "value_head", "value_token",
    "mask", "mask_batch", "mask_new", "out", "kept", "scale",
)  # fmt: skip
ORDER = np.dtype([(name, np.int64) for name in _FIELDS])
_score1, _score2, _score3, _score4 = map(scorer, range(1, ROWS + 1))
_dot1, _dot2, _dot3, _dot4 = map(dotter, range(1, ROWS + 1))
_gather1, _gather2, _gather3, _gather4 = map(gatherer, range(1, ROWS + 1))


@register_jitable
def kept_of(rows: Any, dim: Any) -> Any:
    """Numbers kept of a part: sums, largest scores, sums of weights; whole cache lines."""
    line = LINE // 4
    return (rows * (dim + 2) + line - 1) // line * line


def work(pointer: Any) -> None:
    """Whatever is left to do, by one thread; who is ready last puts the parts together."""
    orders = numba.carray(pointer, (1,), ORDER)  # type: ignore[attr-defined]
    order, first = orders[0], np.int64(orders.ctypes.data)
    rows, dim = order.group * order.new, order.dim
    # Of a block transposed keys, scores, and whatever ends within it; queries; see `weigh`.
    sizes = BLOCK * dim, rows * BLOCK, BLOCK * dim, rows * dim, 3 * rows
    room = np.empty(sum(sizes) + LINE // 4, np.float32)
    keys = (np.int64(room.ctypes.data) + LINE - 1) // LINE * LINE
    scores = keys + 4 * sizes[0]
    spare = scores + 4 * sizes[1]
    queries = spare + 4 * sizes[2]
    state = queries + 4 * sizes[3]
    floats = np.empty(0, np.float32)
    while True:
        unit = count_on(first)
        if unit >= order.units:
            break
        _attend(order, unit, keys, scores, spare, queries, state, floats)
        if count_on(first + 8) == order.units - 1:
            _merge(order, floats)
    room[0] = 0  # it is kept until here


@part
def _attend(
    order: Any, unit: Any, keys: Any, scores: Any, spare: Any, queries: Any, state: Any, floats: Any
) -> None:
    """A part of the tokens of one KV head: its sums, and what `_merge` must know of them."""
    new, dim, rows = order.new, order.dim, order.group * order.new
    batch, head = unit // order.parts // order.kv_heads, unit // order.parts % order.kv_heads
    _scale(order, batch, head, queries, floats)
    start = unit % order.parts * PART
    stop = min(order.tokens, start + PART)
    to = order.kept + 4 * unit * kept_of(rows, dim)
    kept, known = array_at(to, rows * (dim + 2), floats), array_at(state, 2 * rows, floats)
    kept[: rows * dim], known[:rows], known[rows:] = 0, LOWEST, 0
    key = order.key + 4 * (batch * order.key_batch + head * order.key_head)
    value = order.value + 4 * (batch * order.value_batch + head * order.value_head)
    padded = array_at(spare, BLOCK * dim, floats)
    for block in range(start, stop, BLOCK):
        count = min(BLOCK, stop - block)
        at = key + 4 * block * order.key_token
        apart = order.key_token
        if count < BLOCK:  # what is behind them is not ours to read
            _pad(at, apart, dim, count, padded, floats)
            at, apart = spare, dim
        if rows <= ROWS:
            _dot(rows, queries, at, apart, dim, scores)
        else:
            transpose(at, apart, dim, keys)
            for r in range(0, rows, ROWS):
                row = scores + 4 * r * BLOCK
                _score(min(ROWS, rows - r), queries + 4 * r * dim, dim, keys, row)
        for r in range(rows):
            mask = np.int64(0)
            if order.mask:
                own = batch * order.mask_batch + r % new * order.mask_new + block
                mask = order.mask + 4 * own
                if count < BLOCK:
                    padded[:count] = array_at(mask, count, floats)
                    mask = spare
            weigh(scores + 4 * r * BLOCK, mask, count, state + 4 * r, rows)
        at = value + 4 * block * order.value_token
        for r in range(0, rows, ROWS):
            row, shrink = scores + 4 * r * BLOCK, state + 4 * (2 * rows + r)
            some, sums = min(ROWS, rows - r), to + 4 * r * dim
            _gather(some, row, at, order.value_token, count, shrink, sums, dim)
    kept[rows * dim :] = known


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
def _pad(at: Any, apart: Any, dim: Any, count: Any, padded: Any, floats: Any) -> None:
    """Keys side by side, and nothing behind them."""
    padded[count * dim :] = 0
    for token in range(count):
        padded[token * dim : (token + 1) * dim] = array_at(at + 4 * token * apart, dim, floats)


@part
def _dot(rows: Any, queries: Any, keys: Any, apart: Any, dim: Any, to: Any) -> None:
    if rows == 4:
        _dot4(queries, keys, apart, dim, to)
    elif rows == 3:
        _dot3(queries, keys, apart, dim, to)
    elif rows == 2:
        _dot2(queries, keys, apart, dim, to)
    else:
        _dot1(queries, keys, apart, dim, to)


@part
def _score(rows: Any, queries: Any, dim: Any, keys: Any, to: Any) -> None:
    if rows == 4:
        _score4(queries, dim, keys, to)
    elif rows == 3:
        _score3(queries, dim, keys, to)
    elif rows == 2:
        _score2(queries, dim, keys, to)
    else:
        _score1(queries, dim, keys, to)


@part
def _gather(
    rows: Any, weights: Any, values: Any, apart: Any, count: Any, shrink: Any, to: Any, dim: Any
) -> None:
    if rows == 4:
        _gather4(weights, values, apart, count, shrink, to, dim)
    elif rows == 3:
        _gather3(weights, values, apart, count, shrink, to, dim)
    elif rows == 2:
        _gather2(weights, values, apart, count, shrink, to, dim)
    else:
        _gather1(weights, values, apart, count, shrink, to, dim)


@part
def _merge(order: Any, floats: Any) -> None:
    """Parts in the proportion of their sums."""
    parts, group, new, dim = order.parts, order.group, order.new, order.dim
    rows, heads = group * new, order.kv_heads * group
    each = kept_of(rows, dim)
    kept = array_at(order.kept, order.units * each, floats)
    for whole in range(order.units // parts):
        batch, head = whole // order.kv_heads, whole % order.kv_heads
        for r in range(rows):
            to = ((batch * new + r % new) * heads + head * group + r // new) * dim
            out = array_at(order.out + 4 * to, dim, floats)
            out[:] = 0
            peak, total = LOWEST, np.float32(0)
            for p in range(parts):
                peak = max(peak, kept[(whole * parts + p) * each + rows * dim + r])
            for p in range(parts):
                base = (whole * parts + p) * each
                share = np.float32(math.exp(kept[base + rows * dim + r] - peak))
                total += share * kept[base + rows * (dim + 1) + r]
                for i in range(dim):
                    out[i] += share * kept[base + r * dim + i]
            for i in range(dim):
                out[i] /= total
