"""Our rANS against constriction's, on numbers as `transform` has them, one thread each, in turn.

    pip install constriction && python -m benchmarks.results.rate_coder

constriction codes an array under one model at a time, so its numbers are sorted by distribution
first (not timed), which a decoder of whole parts could do as well.
"""

from __future__ import annotations

import time
from typing import Any

import constriction
import numpy as np

from qkvshare.codecs.entropy import CLASSES, make_tables, shifted
from qkvshare.kernels import rans

TOKENS, COLUMNS, ROUNDS = 16384, 192, 9
EMPTY = np.zeros((CLASSES, rans.SYMBOLS))
TABLES = make_tables(EMPTY, EMPTY)


def numbers() -> tuple[Any, Any, Any]:
    """Laplace numbers at about a bit each; their rows and tables."""
    draw = np.random.default_rng(0)
    table = shifted(np.sort(draw.integers(14, 34, COLUMNS)).astype(np.int32))
    rows = np.clip(28 + np.rint(draw.normal(size=TOKENS)), 0, 56).astype(np.int32)
    found = table[rows]
    values = np.rint(draw.laplace(size=found.shape) * 2.0 ** ((found - 32) / 4))
    values = values.clip(-25, 25).astype(np.int32)
    known = TABLES.freq[found, values + rans.LARGEST] > 0
    return np.where(known, values, 0).astype(np.int32), rows, table


def ours(values: Any, rows: Any, table: Any) -> tuple[float, float, int]:
    """Seconds to encode and to decode, and bytes."""
    words, escapes = np.empty(values.size, np.uint16), np.empty(5 * values.size, np.uint8)
    start = time.perf_counter()
    first, _, states = rans.encode(values, rows, table, TABLES.freq, TABLES.start, words, escapes)
    encoded = time.perf_counter() - start
    kept, none = words[first:].copy(), np.zeros(0, np.uint8)
    out, activity = np.empty(values.shape, np.float32), np.empty(len(values), np.int32)
    units = np.ones(len(values), np.float32)
    start = time.perf_counter()
    chunk = kept, states, none, slice(0, len(values))
    assert rans.decode([chunk], rows, table, TABLES.lookup, TABLES.points, units, out, activity)
    return encoded, time.perf_counter() - start, kept.nbytes


def theirs(values: Any, rows: Any, table: Any) -> tuple[float, float, int]:
    """The same."""
    found = table[rows].ravel()
    order, counts = np.argsort(found, kind="stable"), np.bincount(found, minlength=CLASSES)
    runs = np.split(values.ravel()[order] + rans.LARGEST, np.cumsum(counts)[:-1])
    used = [np.flatnonzero(freq) for freq in TABLES.freq]
    models = [
        constriction.stream.model.Categorical(freq[at] / rans.TOTAL, perfect=False)
        for freq, at in zip(TABLES.freq, used, strict=True)
    ]
    symbols = [
        np.searchsorted(at, run).astype(np.int32) for at, run in zip(used, runs, strict=True)
    ]
    coder = constriction.stream.stack.AnsCoder()
    start = time.perf_counter()
    for run, model in zip(symbols[::-1], models[::-1], strict=True):
        coder.encode_reverse(run, model)
    encoded = time.perf_counter() - start
    nbytes = coder.get_compressed().nbytes
    start = time.perf_counter()
    again = [coder.decode(model, len(run)) for run, model in zip(symbols, models, strict=True)]
    decoded = time.perf_counter() - start
    assert all((one == other).all() for one, other in zip(symbols, again, strict=True))
    return encoded, decoded, nbytes


def main() -> None:
    """Medians in millions of numbers a second."""
    given = numbers()
    ours(*given)
    rounds = [(ours(*given), theirs(*given)) for _ in range(ROUNDS)]
    for name, own in zip(("ours", "constriction"), zip(*rounds, strict=True), strict=True):
        encode, decode, nbytes = (float(np.median(x)) for x in zip(*own, strict=True))
        speeds = [given[0].size / seconds / 1e6 for seconds in (encode, decode)]
        print(f"{name}: encode {speeds[0]:.0f} M/s, decode {speeds[1]:.0f} M/s, {nbytes:.0f} bytes")


if __name__ == "__main__":
    main()
