"""Quantize, code and decode small integers: range coding with static tables.

rANS (Duda, arXiv:1311.2540) with four interleaved states and probabilities of 12 bits, see
``csrc/rans.cpp``. Each row of numbers is coded with one row of a ``table``, which names a
distribution for every column: so a row as a whole can be taken for larger or smaller than usual.
What a distribution has no room for is escaped and costs whole bytes.

Each function has the same in plain Python below its call of the native kernel, which must equal it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ..card.digest import Bytes
from .native import native

BITS = 12
TOTAL = 1 << BITS
LARGEST = 31
ESCAPE = 2 * LARGEST + 1
SYMBOLS = ESCAPE + 1
WAYS = 4  # states; column c belongs to state c % 4
_LOW, _LIMIT = 1 << 16, np.float32(1 << 30)


def quantize(
    z: Any, rows: Any, table: Any, units: Any, dead: Any, points: Any, values: Any, out: Any,
    activity: Any,
) -> None:  # fmt: skip
    """Numbers to the nearest multiple of their row's unit, those near the middle to the lower one.

    ``z [n, dim]`` float32; ``values`` int32 and ``out`` float32 of the same shape, the latter what
    the decoder will see; ``activity [n]`` int32, the sum of magnitudes.
    """
    if native is not None:
        native.rans_quantize(z, rows, table, units, dead, points, values, out, activity)
        return
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
    """Code ``values`` int32 ``[n, dim]``, backwards, into the ends of ``words`` and ``escapes``.

    Returns where in ``words`` (uint16) and ``escapes`` (uint8) the output begins, and the states.
    """
    if native is not None:
        at, far, states = native.rans_encode(values, rows, table, freq, start, words, escapes)
        return at, far, np.array(states, np.uint32)
    state, at, far = [_LOW] * WAYS, words.size, escapes.size
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
            f, x = int(freq[own, symbol]), state[c % WAYS]
            if x >= f << (32 - BITS):
                at -= 1
                words[at] = x & 0xFFFF
                x >>= 16
            state[c % WAYS] = (x // f << BITS) + x % f + int(start[own, symbol])
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
    """Undo `encode` for each of ``chunks``, on all of torch's threads: words, states, escapes,
    which tokens. The rest is of all tokens; ``out [n, dim]`` is as `quantize` gave it.

    ``lookup`` uint32 ``[tables · 4096]``: symbol << 24 | (frequency - 1) << 12 | slot - start.
    Returns whether all came out even.
    """
    if native is not None:
        flat = [
            (words, np.asarray(states, np.uint32), np.ascontiguousarray(escapes), at.start, at.stop)
            for words, states, escapes, at in chunks
        ]
        given = rows, table, lookup, points, units, out, activity
        return bool(native.rans_decode(flat, *given, torch.get_num_threads()))
    slots, even = lookup.reshape(len(points), TOTAL), True
    for words, states, escapes, tokens in chunks:
        state, at, far = list(map(int, states)), 0, 0
        for t in range(tokens.start, tokens.stop):
            activity[t] = 0
            for c, own in enumerate(table[rows[t]]):
                x = state[c % WAYS]
                entry = int(slots[own, x & (TOTAL - 1)])
                x = ((entry >> 12 & (TOTAL - 1)) + 1) * (x >> BITS) + (entry & (TOTAL - 1))
                if x < _LOW:
                    x, at = x << 16 | (int(words[at]) if at < len(words) else 0), at + 1
                state[c % WAYS] = x
                value = (entry >> 24) - LARGEST
                if value > LARGEST:
                    value, far = _escaped(escapes, far)
                known = abs(value) <= LARGEST
                number = points[own, value + LARGEST] if known else np.float32(value)
                out[t, c] = number * units[t]
                activity[t] += min(abs(value), LARGEST)
        even &= state == [_LOW] * WAYS and at == len(words) and far == len(escapes)
    return even


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
