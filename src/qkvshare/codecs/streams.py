"""The bytes of a layer encoded by ``transform``: sizes, exponents, means, then streams in chunks.

Streams are in the order of their worth: those of the base, chunk after chunk, then those of each
refinement. Each is a pair, codes and escapes; a refinement that was dropped has no bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from ..card.digest import Bytes
from ..card.errors import CardFormatError
from ..kernels import rans
from .entropy import CLASSES, Ints, Tables, exact_table
from .means import fitting_class

CHUNK = 512  # tokens that are coded together; chunks are opened in parallel
# Exponents of tokens' steps, in quarters of an octave.
FINEST, COARSEST = -24, 12
_STATES = 4 * rans.WAYS  # bytes before the words
_HEAD = 3  # exponents, means of keys, means of values

Stream = tuple[Bytes, Bytes]  # codes (states, then words), escapes


def chunks(tokens: int) -> list[slice]:
    """The runs of tokens that have streams of their own."""
    return [slice(at, min(at + CHUNK, tokens)) for at in range(0, tokens, CHUNK)]


def write(values: Ints, rows: Ints, table: Ints, tables: Tables) -> Stream:
    """Code ``values [tokens, columns]``; distribution ``table[rows[t], c]`` for each."""
    words, escapes = np.empty(values.size, np.uint16), np.empty(5 * values.size, np.uint8)
    first, far, states = rans.encode(
        np.ascontiguousarray(values), rows, table, tables.freq, tables.start, words, escapes
    )
    codes = np.concatenate([states.astype("<u4").view(np.uint8), words[first:].view(np.uint8)])
    return codes, escapes[far:].copy()


def read(
    stream: Stream, rows: Ints, table: Ints, tables: Tables, units: object, out: object,
    activity: Ints,
) -> None:  # fmt: skip
    """Undo `write` into ``out [tokens, columns]``; numbers of token ``t`` in steps of
    ``units[t]``. Raises `CardFormatError`."""
    codes, escapes = stream
    words = np.ascontiguousarray(codes[_STATES:]).view("<u2")
    states = np.ascontiguousarray(codes[:_STATES]).view("<u4").astype(np.uint64)
    if not rans.decode(
        words, states, escapes, rows, table, tables.lookup, tables.points, units, out, activity
    ):
        raise bad("data that does not end where it should")


def join(exponents: Ints, means: Sequence[Bytes], streams: Sequence[Stream]) -> Bytes:
    """A layer's blob; ``means`` of keys and of values, see `write_means`."""
    coded = _write_exponents(exponents)
    parts = [coded, *means, *(part for pair in streams for part in pair)]
    head = np.frombuffer(struct.pack(f"<{len(parts)}I", *map(len, parts)), np.uint8)
    return np.concatenate([head, *parts])


def split(blob: Bytes, tokens: int, levels: int) -> tuple[Ints, list[Bytes], list[list[Stream]]]:
    """Exponents, means, and the streams of each of ``levels`` (base and refinements): keys and
    values of a chunk, then of the next; empty where a level was dropped. Raises
    `CardFormatError`."""
    cuts = _cuts(blob, tokens, levels)
    parts = [blob[start:end] for start, end in pairwise(cuts)]
    pairs = list(zip(parts[_HEAD::2], parts[_HEAD + 1 :: 2], strict=True))
    each = 2 * len(chunks(tokens))
    found = [pairs[at : at + each] for at in range(0, each * levels, each)]
    while len(found) > 1 and not any(len(codes) + len(more) for codes, more in found[-1]):
        found.pop()
    if any(len(codes) < _STATES or len(codes) % 2 for level in found for codes, _ in level):
        raise bad("a stream of a wrong size")
    return _read_exponents(parts[0], tokens), parts[1:_HEAD], found


def level_bytes(blob: Bytes, tokens: int, levels: int) -> list[int]:
    """Bytes of each refinement. Raises `CardFormatError`."""
    cuts = _cuts(blob, tokens, levels)
    each = 4 * len(chunks(tokens))
    ends = [int(cuts[_HEAD + each * level]) for level in range(1, levels + 1)]
    return [end - start for start, end in pairwise(ends)]


def drop(blob: Bytes, tokens: int, levels: int, keep: int) -> Bytes:
    """The blob with the first ``keep`` refinements only; nothing is decoded."""
    cuts = _cuts(blob, tokens, levels)
    each = 4 * len(chunks(tokens))
    kept = _HEAD + each * (1 + keep)
    sizes = np.diff(cuts).astype("<u4")
    sizes[kept:] = 0
    return np.concatenate([sizes.view(np.uint8), blob[cuts[0] : cuts[kept]]])


def _cuts(blob: Bytes, tokens: int, levels: int) -> Ints:
    """Where each part begins, and where the last ends."""
    count = _HEAD + 4 * len(chunks(tokens)) * levels
    if len(blob) < 4 * count:
        raise bad(f"{len(blob)} bytes, expected at least {4 * count}")
    sizes = np.ascontiguousarray(blob[: 4 * count]).view("<u4").astype(np.int64)
    cuts = 4 * count + np.concatenate([[0], np.cumsum(sizes)])
    if cuts[-1] != len(blob):
        raise bad(f"{len(blob)} bytes, expected {cuts[-1]}")
    return cuts


def write_means(means: Ints, tables: Tables) -> tuple[Bytes, Ints]:
    """Whole ``means [columns]`` under one class: its number, then the codes; nothing where all are
    0. Also the means as they were written."""
    if not means.any():
        return np.zeros(0, np.uint8), means
    chosen, told = fitting_class(means, tables)
    if not told.any():
        return np.zeros(0, np.uint8), told
    codes = _write_column(told, tables, chosen)
    return np.concatenate([np.array([chosen], np.uint8), codes]), told


def read_means(data: Bytes, columns: int, tables: Tables) -> Ints:
    """Undo `write_means`. Raises `CardFormatError`."""
    if len(data) == 0:
        return np.zeros(columns, np.int32)
    if len(data) < 5 or len(data) % 2 == 0 or data[0] >= CLASSES:
        raise bad("means of a wrong size")
    return _read_column(data[1:], columns, tables, int(data[0]))


def _write_exponents(exponents: Ints) -> Bytes:
    """How many different ones, each with its frequency, then the codes."""
    freq = exact_table(exponents)
    used = np.flatnonzero(freq[0])
    head = np.concatenate([used, freq[0][used]]).astype("<u2").view(np.uint8)
    codes = _write_column(exponents, _tables(freq))
    return np.concatenate([np.array([len(used)], np.uint8), head, codes])


def _read_exponents(data: Bytes, tokens: int) -> Ints:
    used = int(data[0]) if len(data) else 0
    if used == 0 or len(data) < 1 + 4 * used + 4 or (len(data) - 1) % 2:
        raise bad("exponents of a wrong size")
    symbols, counts = np.split(np.ascontiguousarray(data[1 : 1 + 4 * used]).view("<u2"), 2)
    outside = (symbols < rans.LARGEST + FINEST) | (symbols > rans.LARGEST + COARSEST)
    unordered = np.diff(symbols.astype(int)) <= 0
    if outside.any() or unordered.any() or counts.sum() != rans.TOTAL or not counts.all():
        raise bad("exponents out of range")
    freq = np.zeros((1, rans.SYMBOLS), np.int32)
    freq[0, symbols] = counts
    return _read_column(data[1 + 4 * used :], tokens, _tables(freq))


def _write_column(values: Ints, tables: Tables, chosen: int = 0) -> Bytes:
    """All under the same distribution, none escaped: a state, then words."""
    rows, table = np.zeros(len(values), np.int32), np.full((1, 1), chosen, np.int32)
    codes, _ = write(values[:, None].astype(np.int32), rows, table, tables)
    # One column uses one state; the others stay where they begin.
    return np.concatenate([codes[:4], codes[_STATES:]])


def _read_column(data: Bytes, count: int, tables: Tables, chosen: int = 0) -> Ints:
    rest, begun = np.ascontiguousarray(data), np.full(3, 1 << 16, "<u4")
    codes = np.concatenate([rest[:4], begun.view(np.uint8), rest[4:]])
    out, activity = np.empty((count, 1), np.float32), np.empty(count, np.int32)
    rows, table = np.zeros(count, np.int32), np.full((1, 1), chosen, np.int32)
    stream, units = (codes, np.zeros(0, np.uint8)), np.ones(count, np.float32)
    read(stream, rows, table, tables.whole, units, out, activity)
    return out[:, 0].astype(np.int32)


def _tables(freq: Ints) -> Tables:
    return Tables(freq, np.zeros((1, rans.SYMBOLS), np.float32), np.zeros(1, np.int32))


def bad(found: str) -> CardFormatError:
    """What a damaged layer gets."""
    return CardFormatError(
        f"a layer encoded by 'transform' has {found}. The card is damaged or was assembled by hand."
    )
