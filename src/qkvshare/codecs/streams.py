"""The bytes of a layer encoded by ``transform``: sizes, exponents, then streams in chunks.

Streams are in the order of their worth: those of the base, chunk after chunk, then those of each
refinement. Each is a pair, codes and escapes; a refinement that was dropped has no bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from itertools import pairwise

import numpy as np

from ..card.digest import Bytes
from ..card.errors import CardFormatError
from ..kernels import rans
from .base import BitCounts, alike, damaged
from .entropy import Floats, Ints, Tables, exact_table
from .layers import Shape

CHUNK = 512  # tokens that are coded together; chunks are opened in parallel
# Exponents of tokens' steps, in quarters of an octave.
FINEST, COARSEST = -24, 12
_STATES = 4 * rans.WAYS  # bytes before the words

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
    runs: Iterable[tuple[Stream, slice]], rows: Ints, table: Ints, tables: Tables, units: Floats,
    out: Floats, activity: Ints,
) -> None:  # fmt: skip
    """Undo `write` for each run of tokens into ``out [tokens, columns]``, on all of torch's
    threads; numbers of token ``t`` in steps of ``units[t]``. Raises `CardFormatError`."""
    found = []
    for (codes, escapes), at in runs:
        states = codes[:_STATES].copy().view("<u4").astype(np.uint64)
        found.append((codes[_STATES:].copy().view("<u2"), states, escapes, at))
    if not rans.decode(found, rows, table, tables.lookup, tables.points, units, out, activity):
        raise bad("data that does not end where it should")


def join(exponents: Ints, streams: Sequence[Stream]) -> Bytes:
    """A layer's blob."""
    coded = _write_exponents(exponents)
    parts = [coded, *(part for pair in streams for part in pair)]
    head = np.frombuffer(struct.pack(f"<{len(parts)}I", *map(len, parts)), np.uint8)
    return np.concatenate([head, *parts])


def split(blob: Bytes, tokens: int, levels: int) -> tuple[Ints, list[list[Stream]]]:
    """Exponents, and the streams of each of ``levels`` (base and refinements): keys and values of
    a chunk, then of the next; empty where a level was dropped. Raises `CardFormatError`."""
    cuts = _cuts(blob, tokens, levels)
    parts = [blob[start:end] for start, end in pairwise(cuts)]
    pairs = list(zip(parts[1::2], parts[2::2], strict=True))
    each = 2 * len(chunks(tokens))
    found = [pairs[at : at + each] for at in range(0, each * levels, each)]
    while len(found) > 1 and not any(len(codes) + len(more) for codes, more in found[-1]):
        found.pop()
    if any(len(codes) < _STATES or len(codes) % 2 for level in found for codes, _ in level):
        raise bad("a stream of a wrong size")
    return _read_exponents(parts[0], tokens), found


def level_bytes(blob: Bytes, tokens: int, levels: int) -> list[int]:
    """Bytes of each refinement. Raises `CardFormatError`."""
    cuts = _cuts(blob, tokens, levels)
    each = 4 * len(chunks(tokens))
    ends = [int(cuts[1 + each * level]) for level in range(1, levels + 1)]
    return [end - start for start, end in pairwise(ends)]


def token_bits(blob: Bytes, shape: Shape, levels: int) -> tuple[BitCounts, BitCounts]:
    """Bits of each token's keys and values. Raises `CardFormatError`.

    A chunk's bytes are shared as Gaussian numbers of one variance would need them, coded at the
    tokens' steps ``2 ** (exponent / 4)``: ``½ log2(1 + (4 ** rate - 1) / step²)`` bits each.
    """
    exponents, found = split(blob, shape.tokens, levels)
    bits = [np.zeros(shape.tokens, np.float32) for _ in "kv"]
    rest = blob.nbytes
    for n, at in enumerate(chunks(shape.tokens)):
        for kind, dim in enumerate((shape.head_dim, shape.v_head_dim)):
            pairs = [level[2 * n + kind] for level in found]
            nbytes = sum(len(codes) + len(escapes) for codes, escapes in pairs)
            rest -= nbytes
            rate = 8 * nbytes / (shape.kv_heads * dim * (at.stop - at.start))
            weights = np.log2(1 + np.expm1(min(rate, 32) * np.log(4)) * 2.0 ** (-exponents[at] / 2))
            if nbytes:
                bits[kind][at] = 8 * nbytes * weights / weights.sum()
    for one in bits:  # sizes and exponents are of both
        one += alike(rest / 2, shape)
    return bits[0], bits[1]


def drop(blob: Bytes, tokens: int, levels: int, keep: int) -> Bytes:
    """The blob with the first ``keep`` refinements only; nothing is decoded."""
    cuts = _cuts(blob, tokens, levels)
    each = 4 * len(chunks(tokens))
    kept = 1 + each * (1 + keep)
    sizes = np.diff(cuts).astype("<u4")
    sizes[kept:] = 0
    return np.concatenate([sizes.view(np.uint8), blob[cuts[0] : cuts[kept]]])


def _cuts(blob: Bytes, tokens: int, levels: int) -> Ints:
    """Where each part begins, and where the last ends."""
    count = 1 + 4 * len(chunks(tokens)) * levels
    if len(blob) < 4 * count:
        raise bad(f"{len(blob)} bytes, expected at least {4 * count}")
    sizes = np.ascontiguousarray(blob[: 4 * count]).view("<u4").astype(np.int64)
    cuts = 4 * count + np.concatenate([[0], np.cumsum(sizes)])
    if cuts[-1] != len(blob):
        raise bad(f"{len(blob)} bytes, expected {cuts[-1]}")
    return cuts


def _write_exponents(exponents: Ints) -> Bytes:
    """How many different ones, each with its frequency, then the codes."""
    freq = exact_table(exponents)
    used = np.flatnonzero(freq[0])
    head = np.concatenate([used, freq[0][used]]).astype("<u2").view(np.uint8)
    rows, table = np.zeros(len(exponents), np.int32), np.zeros((1, 1), np.int32)
    codes, _ = write(exponents[:, None].astype(np.int32), rows, table, _exponent_tables(freq))
    # One column uses one state; the others stay where they begin.
    return np.concatenate([np.array([len(used)], np.uint8), head, codes[:4], codes[_STATES:]])


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
    rest, begun = np.ascontiguousarray(data[1 + 4 * used :]), np.full(3, 1 << 16, "<u4")
    codes = np.concatenate([rest[:4], begun.view(np.uint8), rest[4:]])
    out, activity = np.empty((tokens, 1), np.float32), np.empty(tokens, np.int32)
    rows, table = np.zeros(tokens, np.int32), np.zeros((1, 1), np.int32)
    runs, units = [((codes, np.zeros(0, np.uint8)), slice(0, tokens))], np.ones(tokens, np.float32)
    read(runs, rows, table, _exponent_tables(freq), units, out, activity)
    return out[:, 0].astype(np.int32)


def _exponent_tables(freq: Ints) -> Tables:
    points = (np.arange(rans.SYMBOLS, dtype=np.float32) - rans.LARGEST)[None]
    return Tables(freq, points, np.zeros(1, np.int32))


def bad(found: str) -> CardFormatError:
    """What a damaged layer gets."""
    return damaged("transform", found)
