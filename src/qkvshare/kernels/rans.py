"""Quantize, code and decode small integers, in Numba: range coding with static tables.

rANS (Duda, arXiv:1311.2540) with four interleaved states, which hide the latency of each other, 16
bits at a time, and probabilities of 12 bits. Each row of numbers is coded with one row of
``tables``, which names a distribution for every column: so a row as a whole can be taken for larger
or smaller than usual. What a distribution has no room for is escaped and costs whole bytes.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .compiling import kernel, part

BITS = 12
TOTAL = 1 << BITS
LARGEST = 31  # magnitude with a symbol of its own
ESCAPE = 2 * LARGEST + 1
SYMBOLS = ESCAPE + 1
WAYS = 4  # states; column c belongs to state c % 4
_LOW = np.uint64(1 << 16)
_MASK = np.uint64(TOTAL - 1)
_LIMIT = np.float32(1 << 30)
_ESCAPED = np.uint32(ESCAPE << 24)  # the least entry of an escape


@kernel
def quantize(
    z: Any, rows: Any, tables: Any, units: Any, dead: Any, points: Any, values: Any, out: Any,
    activity: Any,
) -> None:  # fmt: skip
    """Numbers to the nearest multiple of their row's unit, those near the middle to the lower one.

    ``z [n, dim]`` float32; ``values`` int32 and ``out`` float32 of the same shape, the latter what
    the decoder will see; ``activity [n]`` int32, the sum of magnitudes.
    """
    n, dim = z.shape
    bias = np.float32(0.5) - dead
    for t in range(n):
        row, unit = tables[rows[t]], units[t]
        total: Any = 0
        inverse = np.float32(1) / unit
        for c in range(dim):
            size = min(np.floor(abs(z[t, c]) * inverse + bias), _LIMIT)
            value = np.int32(size) if z[t, c] >= 0 else -np.int32(size)
            values[t, c] = value
            if size <= LARGEST:
                total += abs(value)
                out[t, c] = points[row[c], value + LARGEST] * unit
            else:
                total += LARGEST
                out[t, c] = np.float32(value) * unit
        activity[t] = total


@kernel
def encode(
    values: Any, rows: Any, tables: Any, freq: Any, start: Any, words: Any, escapes: Any
) -> tuple[int, int, Any]:
    """Code ``values`` int32 ``[n, dim]``, backwards, into the ends of ``words`` and ``escapes``.

    Returns where in ``words`` (uint16) and ``escapes`` (uint8) the output begins, and the states.
    """
    state = np.full(WAYS, _LOW, np.uint64)
    n, dim = values.shape
    at, far = words.size, escapes.size
    for t in range(n - 1, -1, -1):
        row = tables[rows[t]]
        for c in range(dim - 1, -1, -1):
            value, table = values[t, c], row[c]
            symbol = value + LARGEST
            if symbol < 0 or symbol >= ESCAPE or freq[table, symbol] == 0:
                symbol = ESCAPE
                rest = np.uint64(2 * abs(np.int64(value)) - (1 if value < 0 else 0))
                # Seven bits a byte, the last byte without the high bit; written from the end.
                count = 1
                while rest >> np.uint64(7 * count):
                    count += 1
                for number in range(count - 1, -1, -1):
                    far -= 1
                    byte = (rest >> np.uint64(7 * number)) & np.uint64(127)
                    escapes[far] = byte | np.uint64(128 if number < count - 1 else 0)
            f, x = np.uint64(freq[table, symbol]), state[c & 3]
            if x >= f << np.uint64(32 - BITS):
                at -= 1
                words[at] = x & np.uint64(0xFFFF)
                x >>= np.uint64(16)
            state[c & 3] = ((x // f) << np.uint64(BITS)) + x % f + np.uint64(start[table, symbol])
    return at, far, state


# Parts get no arrays in the inner loop: Numba would count references at every call.
@part
def _place(table: Any, x: Any) -> Any:
    """Where the entry of the next symbol is."""
    return (np.uint64(table) << np.uint64(BITS)) | (x & _MASK)


@part
def _after(x: Any, entry: Any) -> Any:
    """The state after a symbol; below `_LOW` it lacks a word."""
    f = ((entry >> np.uint32(12)) & np.uint32(TOTAL - 1)) + np.uint32(1)
    return np.uint64(f) * (x >> np.uint64(BITS)) + np.uint64(entry & np.uint32(TOTAL - 1))


@part
def _filled(x: Any, word: Any) -> Any:
    return (x << np.uint64(16)) | np.uint64(word)


@part
def _put(
    entry: Any, point: Any, unit: Any, escapes: Any, far: int, out: Any, c: int
) -> tuple[Any, int]:
    """Write the number of ``entry``; its magnitude, and where the next escape is."""
    symbol = np.int64(entry >> np.uint32(24))
    if symbol < ESCAPE:
        out[c] = point[symbol] * unit
        return abs(symbol - LARGEST), far
    value, far = _escaped(escapes, far)
    if abs(value) <= LARGEST:
        out[c] = point[value + LARGEST] * unit
        return abs(value), far
    out[c] = np.float32(value) * unit
    return np.int64(LARGEST), far


@part
def _escaped(escapes: Any, far: int) -> tuple[Any, int]:
    """One escaped value, and where the next begins."""
    rest, shift = np.uint64(0), np.uint64(0)
    while far < escapes.size and shift < 35:
        byte = np.uint64(escapes[far])
        far += 1
        rest |= (byte & np.uint64(127)) << shift
        if byte < 128:
            break
        shift += np.uint64(7)
    size = np.int64((rest + np.uint64(1)) >> np.uint64(1))
    return (-size if rest & np.uint64(1) else size), far


@part
def decode(
    words: Any, states: Any, escapes: Any, rows: Any, tables: Any, lookup: Any, points: Any,
    units: Any, out: Any, activity: Any,
) -> bool:  # fmt: skip
    """Undo `encode`: ``out [n, dim]`` as `quantize` gave it. Returns whether all came out even.

    ``lookup`` uint32 ``[tables · 4096]``: symbol << 24 | (frequency - 1) << 12 | slot - start.
    """
    n, dim = out.shape
    x0, x1, x2, x3 = np.uint64(states[0]), np.uint64(states[1]), states[2], states[3]
    at, far, fours = 0, 0, dim // 4 * 4
    size, none = words.size, np.uint16(0)
    for t in range(n):
        row, unit, own = tables[rows[t]], units[t], out[t]
        total: Any = 0
        for c in range(0, fours, 4):
            t0, t1, t2, t3 = row[c], row[c + 1], row[c + 2], row[c + 3]
            e0 = lookup[_place(t0, x0)]
            x0 = _after(x0, e0)
            if x0 < _LOW:
                x0 = _filled(x0, words[at] if at < size else none)
                at += 1
            e1 = lookup[_place(t1, x1)]
            x1 = _after(x1, e1)
            if x1 < _LOW:
                x1 = _filled(x1, words[at] if at < size else none)
                at += 1
            e2 = lookup[_place(t2, x2)]
            x2 = _after(x2, e2)
            if x2 < _LOW:
                x2 = _filled(x2, words[at] if at < size else none)
                at += 1
            e3 = lookup[_place(t3, x3)]
            x3 = _after(x3, e3)
            if x3 < _LOW:
                x3 = _filled(x3, words[at] if at < size else none)
                at += 1
            if max(max(e0, e1), max(e2, e3)) < _ESCAPED:
                s0, s1 = np.int64(e0 >> np.uint32(24)), np.int64(e1 >> np.uint32(24))
                s2, s3 = np.int64(e2 >> np.uint32(24)), np.int64(e3 >> np.uint32(24))
                own[c], own[c + 1] = points[t0, s0] * unit, points[t1, s1] * unit
                own[c + 2], own[c + 3] = points[t2, s2] * unit, points[t3, s3] * unit
                total += abs(s0 - LARGEST) + abs(s1 - LARGEST)
                total += abs(s2 - LARGEST) + abs(s3 - LARGEST)
                continue
            m0, far = _put(e0, points[t0], unit, escapes, far, own, c)
            m1, far = _put(e1, points[t1], unit, escapes, far, own, c + 1)
            m2, far = _put(e2, points[t2], unit, escapes, far, own, c + 2)
            m3, far = _put(e3, points[t3], unit, escapes, far, own, c + 3)
            total += m0 + m1 + m2 + m3
        for c in range(fours, dim):
            way = c - fours
            x = x0 if way == 0 else x1 if way == 1 else x2
            entry = lookup[_place(row[c], x)]
            x = _after(x, entry)
            if x < _LOW:
                x = _filled(x, words[at] if at < size else none)
                at += 1
            if way == 0:
                x0 = x
            elif way == 1:
                x1 = x
            else:
                x2 = x
            magnitude, far = _put(entry, points[row[c]], unit, escapes, far, own, c)
            total += magnitude
        activity[t] = total
    done = x0 == _LOW and x1 == _LOW and x2 == _LOW and x3 == _LOW
    return bool(done and at == words.size and far == escapes.size)


@kernel
def tally(z: Any, values: Any, rows: Any, tables: Any, units: Any, counts: Any, sums: Any) -> None:
    """Add to ``counts [tables, symbols]``, and to ``sums`` how far magnitudes are from integers."""
    n, dim = z.shape
    for t in range(n):
        row = tables[rows[t]]
        inverse = np.float32(1) / units[t]
        for c in range(dim):
            value, table = values[t, c], row[c]
            symbol = value + LARGEST if abs(value) <= LARGEST else ESCAPE
            counts[table, symbol] += 1
            sums[table, symbol] += abs(z[t, c]) * inverse - abs(value)
