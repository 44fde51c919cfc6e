"""Range coding in plain Python: what the native kernels must equal, and the slow way without them.

See `rans` for what each function is given and returns.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..card.digest import Bytes

BITS = 12
TOTAL = 1 << BITS
LARGEST = 31
ESCAPE = 2 * LARGEST + 1
_LOW, _LIMIT = 1 << 16, np.float32(1 << 30)


def quantize(
    z: Any, rows: Any, table: Any, units: Any, dead: Any, points: Any, values: Any, out: Any,
    activity: Any,
) -> None:  # fmt: skip
    """See `rans.quantize`."""
    unit = units[:, None]
    size = np.abs(z) * (np.float32(1) / unit) + (np.float32(0.5) - np.float32(dead))
    values[:] = np.copysign(np.fmin(size, _LIMIT), z)  # rounded towards 0
    inside = np.clip(values, -LARGEST, LARGEST)
    known = points[table[rows], inside + LARGEST]
    out[:] = np.where(values == inside, known, values.astype(np.float32)) * unit
    activity[:] = np.abs(inside).sum(1)


def encode(
    values: Any, rows: Any, table: Any, freq: Any, start: Any, words: Any, escapes: Any
) -> tuple[int, int, Any]:
    """See `rans.encode`."""
    state, at, far = [_LOW] * 4, words.size, escapes.size
    tokens, columns = values.shape
    for t in range(tokens - 1, -1, -1):
        for c in range(columns - 1, -1, -1):
            value, own = int(values[t, c]), table[rows[t], c]
            symbol = value + LARGEST
            if not 0 <= symbol < ESCAPE or freq[own, symbol] == 0:
                symbol = ESCAPE
                coded = _escape(2 * abs(value) - (value < 0))
                far -= len(coded)
                escapes[far : far + len(coded)] = coded
            f, x = int(freq[own, symbol]), state[c & 3]
            if x >= f << (32 - BITS):
                at -= 1
                words[at] = x & 0xFFFF
                x >>= 16
            state[c & 3] = (x // f << BITS) + x % f + int(start[own, symbol])
    return at, far, np.array(state, np.uint32)


def _escape(rest: int) -> list[int]:
    """Seven bits a byte, the lowest first; all but the last have the high bit."""
    out = [rest & 127]
    while rest := rest >> 7:
        out[-1] |= 128
        out.append(rest & 127)
    return out


def decode(
    chunks: Sequence[tuple[Any, Any, Bytes, slice]], rows: Any, table: Any, lookup: Any,
    points: Any, units: Any, out: Any, activity: Any,
) -> bool:  # fmt: skip
    """See `rans.decode`."""
    slots = lookup.reshape(len(points), TOTAL)
    given = table[rows], slots, points, units, out, activity
    return all([_decode_chunk(*chunk, *given) for chunk in chunks])


def _decode_chunk(
    words: Any, states: Any, escapes: Any, tokens: slice, table: Any, slots: Any, points: Any,
    units: Any, out: Any, activity: Any,
) -> bool:  # fmt: skip
    state, at, far = list(map(int, states)), 0, 0
    for t in range(tokens.start, tokens.stop):
        activity[t] = 0
        for c, own in enumerate(table[t]):
            x = state[c & 3]
            entry = int(slots[own, x & (TOTAL - 1)])
            x = ((entry >> 12 & (TOTAL - 1)) + 1) * (x >> BITS) + (entry & (TOTAL - 1))
            if x < _LOW:
                x, at = x << 16 | (int(words[at]) if at < len(words) else 0), at + 1
            state[c & 3] = x
            value = (entry >> 24) - LARGEST
            if value > LARGEST:
                value, far = _escaped(escapes, far)
            known = abs(value) <= LARGEST
            out[t, c] = (points[own, value + LARGEST] if known else np.float32(value)) * units[t]
            activity[t] += min(abs(value), LARGEST)
    return state == [_LOW] * 4 and at == len(words) and far == len(escapes)


def _escaped(escapes: Any, far: int) -> tuple[int, int]:
    """One escaped value, and where the next begins."""
    rest, shift = 0, 0
    while far < len(escapes) and shift < 35:
        byte = int(escapes[far])
        far += 1
        rest |= (byte & 127) << shift
        if byte < 128:
            break
        shift += 7
    size = (rest + 1) >> 1
    return (-size if rest & 1 else size), far
