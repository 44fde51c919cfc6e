"""Quantize, code and decode small integers: range coding with static tables.

rANS (Duda, arXiv:1311.2540) with four interleaved states and probabilities of 12 bits, see
``csrc/rans.cpp``. Each row of numbers is coded with one row of a ``table``, which names a
distribution for every column: so a row as a whole can be taken for larger or smaller than usual.
What a distribution has no room for is escaped and costs whole bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ..card.digest import Bytes
from . import rans_reference as reference
from .native import native
from .rans_reference import BITS, ESCAPE, LARGEST, TOTAL

__all__ = ["BITS", "ESCAPE", "LARGEST", "SYMBOLS", "TOTAL", "WAYS"]
SYMBOLS = ESCAPE + 1
WAYS = 4  # states; column c belongs to state c % 4


def quantize(
    z: Any, rows: Any, table: Any, units: Any, dead: Any, points: Any, values: Any, out: Any,
    activity: Any,
) -> None:  # fmt: skip
    """Numbers to the nearest multiple of their row's unit, those near the middle to the lower one.

    ``z [n, dim]`` float32; ``values`` int32 and ``out`` float32 of the same shape, the latter what
    the decoder will see; ``activity [n]`` int32, the sum of magnitudes.
    """
    work = reference.quantize if native is None else native.rans_quantize
    work(z, rows, table, units, dead, points, values, out, activity)


def encode(
    values: Any, rows: Any, table: Any, freq: Any, start: Any, words: Any, escapes: Any
) -> tuple[int, int, Any]:
    """Code ``values`` int32 ``[n, dim]``, backwards, into the ends of ``words`` and ``escapes``.

    Returns where in ``words`` (uint16) and ``escapes`` (uint8) the output begins, and the states.
    """
    work = reference.encode if native is None else native.rans_encode
    at, far, states = work(values, rows, table, freq, start, words, escapes)
    return at, far, np.array(states, np.uint32)


def decode(
    chunks: Sequence[tuple[Any, Any, Bytes, slice]], rows: Any, table: Any, lookup: Any,
    points: Any, units: Any, out: Any, activity: Any,
) -> bool:  # fmt: skip
    """Undo `encode` for each of ``chunks``, on all of torch's threads: words, states, escapes,
    which tokens. The rest is of all tokens; ``out [n, dim]`` is as `quantize` gave it.

    ``lookup`` uint32 ``[tables · 4096]``: symbol << 24 | (frequency - 1) << 12 | slot - start.
    Returns whether all came out even.
    """
    if native is None:
        return reference.decode(chunks, rows, table, lookup, points, units, out, activity)
    flat = [
        (words, np.asarray(states, np.uint32), np.ascontiguousarray(escapes), at.start, at.stop)
        for words, states, escapes, at in chunks
    ]
    given = rows, table, lookup, points, units, out, activity
    return bool(native.rans_decode(flat, *given, torch.get_num_threads()))


def tally(z: Any, values: Any, rows: Any, table: Any, units: Any, counts: Any, sums: Any) -> None:
    """Add to ``counts [tables, symbols]``, and to ``sums`` how far magnitudes are from integers."""
    symbols = np.where(np.abs(values) <= LARGEST, values + LARGEST, ESCAPE)
    place = (table[rows] * SYMBOLS + symbols).ravel()
    counts += np.bincount(place, minlength=counts.size).reshape(counts.shape)
    size = np.abs(z) * (np.float32(1) / units)[:, None]
    far = (size - np.abs(values).astype(np.float64)).ravel()
    sums += np.bincount(place, far, minlength=sums.size).reshape(sums.shape)
