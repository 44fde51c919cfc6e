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


@part
def _step(x: Any, entry: Any, words: Any, at: int) -> tuple[Any, int]:
    """A state after its symbol, and where the next word is."""
    f = ((entry >> np.uint32(12)) & np.uint32(TOTAL - 1)) + np.uint32(1)
    x = np.uint64(f) * (x >> np.uint64(BITS)) + np.uint64(entry & np.uint32(TOTAL - 1))
    if x < _LOW:
        word = words[at] if at < words.size else np.uint16(0)
        x = (x << np.uint64(16)) | np.uint64(word)
        at += 1
    return x, at


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


@kernel
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
    entries = np.empty(4, np.uint32)
    for t in range(n):
        row, unit = tables[rows[t]], units[t]
        total: Any = 0
        for c in range(0, dim, 4):
            whole = c < fours
            e0 = lookup[(np.uint64(row[c]) << np.uint64(BITS)) | (x0 & _MASK)]
            x0, at = _step(x0, e0, words, at)
            entries[0] = e0
            if whole or c + 1 < dim:
                e1 = lookup[(np.uint64(row[c + 1]) << np.uint64(BITS)) | (x1 & _MASK)]
                x1, at = _step(x1, e1, words, at)
                entries[1] = e1
            if whole or c + 2 < dim:
                e2 = lookup[(np.uint64(row[c + 2]) << np.uint64(BITS)) | (x2 & _MASK)]
                x2, at = _step(x2, e2, words, at)
                entries[2] = e2
            if whole:
                e3 = lookup[(np.uint64(row[c + 3]) << np.uint64(BITS)) | (x3 & _MASK)]
                x3, at = _step(x3, e3, words, at)
                entries[3] = e3
            for way in range(4 if whole else dim - c):
                symbol = np.int64(entries[way] >> np.uint32(24))
                if symbol == ESCAPE:
                    value, far = _escaped(escapes, far)
                    if abs(value) <= LARGEST:
                        total += abs(value)
                        out[t, c + way] = points[row[c + way], value + LARGEST] * unit
                    else:
                        total += LARGEST
                        out[t, c + way] = np.float32(value) * unit
                else:
                    total += abs(symbol - LARGEST)
                    out[t, c + way] = points[row[c + way], symbol] * unit
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
