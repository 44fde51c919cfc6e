"""Calls of the native kernels' entries with what a forged card may make of them.

    python -m tests.attacks.fuzz_kernels --runs 100000 --seed 1

Each run makes arguments that fit each other, spoils one of them in half of the runs, and calls the
entry on one of this processor's instruction sets. The call computes, or it refuses with an
exception. Anything else ends the process: `make sanitize` builds the kernels so that it does.
Sizes are always those of the memory behind them: a caller that lies about its own memory is no
attacker. A run depends on the seed and its number only.
"""

from __future__ import annotations

import argparse
import faulthandler
import sys
from collections import Counter
from collections.abc import Callable
from functools import cache
from random import Random
from typing import Any

import numpy as np

from qkvshare.kernels.levels import TIERS
from qkvshare.kernels.native import native
from qkvshare.kernels.rans import SYMBOLS, TOTAL
from qkvshare.kernels.rotation import dct, power_of_two

Array = np.ndarray[Any, Any]
REFUSED = (ValueError, RuntimeError, TypeError)
EDGES = (0, 1, -1, 2, 63, 64, 512, 1 << 16, 1 << 31, 1 << 40, 1 << 62, (1 << 63) - 1, -(1 << 63))
WIDTHS = np.array(TIERS * 32)  # of a row by its byte
WAIT = 120  # seconds for a thousand runs; a call that hangs ends the process


class Draw(Random):
    """Random arrays, each in memory of exactly its size."""

    def chance(self, part: float) -> bool:
        return self.random() < part

    def array(self, kind: str, count: int) -> Array:
        """Any bits; or of bytes all alike, of floats what models have."""
        size = count * np.dtype(kind).itemsize
        if kind == "u1" and self.chance(0.2):
            return np.full(count, self.choice((0, 255, 7, 15)), np.uint8)
        if kind == "f4" and self.chance(0.7):
            return np.frombuffer(self.randbytes(count), np.int8).astype(np.float32) / 16
        return np.frombuffer(self.randbytes(size), kind).copy()

    def below(self, most: int, count: int) -> Array:
        return np.frombuffer(self.randbytes(4 * count), np.uint32).astype(np.int64) % most

    def spoiled(self, given: Any) -> Any:
        """Something else of the same kind, somewhere in ``given``."""
        if isinstance(given, (list, tuple)):
            if not given:
                return given
            at = self.randrange(len(given))
            return type(given)([*given[:at], self.spoiled(given[at]), *given[at + 1 :]])
        if isinstance(given, bool):
            return not given
        if isinstance(given, int):
            return self.choice((*EDGES, given - 1, given + 1, 2 * given))
        if isinstance(given, float):
            return self.choice((0.0, -1.0, 1e30, float("nan"), float("inf")))
        if isinstance(given, Numbers):
            return given.spoiled(self)
        if not isinstance(given, np.ndarray):
            return given
        flat, way = given.ravel(), self.randrange(6)
        if way == 0:
            return (0, 0)
        if way == 1 and given.nbytes:  # not aligned, and a byte short
            cut = flat.view(np.uint8)[1:]
            return cut[: len(cut) // given.itemsize * given.itemsize].view(given.dtype)
        if way == 2:
            return self.array(given.dtype.str, given.size + self.randint(1, 9))
        if way == 3:
            return self.array(given.dtype.str, given.size).reshape(given.shape)
        return flat[: self.randint(0, given.size)].copy()


class Numbers:
    """What attention is told of an array: address, numbers from there on, three steps."""

    def __init__(self, array: Array, steps: tuple[int, ...]) -> None:
        self.array, self.given = array, (array.ctypes.data, array.size, *steps)

    def spoiled(self, draw: Draw) -> Numbers:
        """Another step, fewer numbers, or another address with the numbers that are left."""
        new = Numbers(self.array, self.given[2:])
        at, there, *steps = self.given
        way = draw.randrange(4)
        if way == 0:
            new.given = at, draw.randint(0, there), *steps
        elif way == 1:
            new.given = at + 1, max(0, there - 1), *steps
        elif way == 2:
            new.given = draw.choice(((0, 0, *steps), (0, there, *steps)))
        else:
            new.given = at, there, *draw.spoiled(tuple(steps))
        return new


def angles(draw: Draw, dim: int, tokens: int, part: float = 0.5) -> list[Any]:
    if dim % 2 or draw.chance(part):
        return [(0, 0), (0, 0)]
    return [draw.array("f4", tokens * dim // 2) for _ in range(2)]


def coded(draw: Draw, dim: int, heads: int, tokens: int) -> list[Any]:
    """Codes, bytes, scales, mean, cosines and sines."""
    info = draw.array("u1", heads * tokens)
    size = int(WIDTHS[info].sum()) * (-(-dim // 8))
    mean = draw.array("f4", heads * dim) if draw.chance(0.7) else (0, 0)
    codes, scales = draw.array("u1", size), draw.array("f4", 32)
    return [codes, info, scales, mean, *angles(draw, dim, tokens)]


def any_dim(draw: Draw) -> int:
    """Those of models, and others: a large odd factor takes long, and comes seldom."""
    small = draw.randint(1, 15) * draw.choice((1, 2, 4, 8, 16))
    return draw.randint(1, 256) if draw.chance(0.02) else draw.choice((64, 128, 256, small, small))


def shape(draw: Draw, dim: int) -> tuple[int, int, int]:
    """Heads, tokens, and numbers from one head to the next."""
    heads, tokens = draw.choice((0, 1, 1, 2, 2, 3)), draw.choice((0, 1, 2, 5, 9, 31, 32, 33))
    tokens = draw.randint(34, 70) if draw.chance(0.02) else tokens
    return heads, tokens, tokens * dim + draw.choice((0, 0, 1, 64))


def some_threads(draw: Draw) -> int:
    return draw.randint(2, 4) if draw.chance(0.1) else draw.choice((1, 1, 1, 0, -1))


def reach(heads: int, tokens: int, apart: int, dim: int) -> int:
    return (heads - 1) * apart + tokens * dim if heads and tokens else 0


def factor(dim: int) -> Array:
    return dct(dim // power_of_two(dim))


def decode(draw: Draw, spoil: Callable[[Any], Any]) -> None:
    """A line of some parts; some decoded by a thread, some that change after a check."""
    parts = draw.choice((1, 1, 1, 2, 3))
    held, given = [], []
    for _ in range(parts):
        dim, half = any_dim(draw), draw.chance(0.5)
        heads, tokens, apart = shape(draw, dim)
        numbers = np.full(reach(heads, tokens, apart, dim), 0x5555, "u2" if half else "f4")
        held.append((numbers, heads, tokens, apart, dim))
        *rows, cos, sin = coded(draw, dim, heads, tokens)
        own = (numbers, half, heads, tokens, apart, dim, cos, sin, factor(dim))
        given.append([own, *rows])
    arguments = parts, given
    most, given = spoiled = spoil(arguments)
    line = native.Line(most)
    try:
        if draw.chance(0.05):
            line.start()
        for one in given:
            line.add(*one, one)
            if draw.chance(0.02) and isinstance(one[2], np.ndarray):
                one[2][:] = 7  # more codes than there are
        line.decode()
    finally:
        line.close()  # a thread uses these arrays until then
    for numbers, heads, tokens, apart, dim in held if spoiled is arguments else ():
        for head in range(heads - 1):  # nothing is written between heads
            assert (numbers[head * apart + tokens * dim : (head + 1) * apart] == 0x5555).all()


def attend(draw: Draw, spoil: Callable[[Any], Any]) -> None:
    batch, kv_heads = draw.choice((1, 1, 1, 2)), draw.choice((1, 1, 2))
    group, fresh = draw.choice((1, 1, 2, 3, 4)), draw.choice((1, 1, 2, 3, 4))
    dim, half = draw.choice((64, 64, 64, 128, 256, 320)), draw.chance(0.5)

    def some_tokens() -> int:
        return draw.randint(510, 520) if draw.chance(0.02) else draw.choice((0, 1, 9, 63, 64, 65))

    tokens, pieces, first = some_tokens(), list[Any](), 0
    for _ in range(draw.choice((0, 0, 1, 2)) if dim < 300 else 0):
        own = some_tokens()
        rows = [coded(draw, dim, kv_heads, own) for _ in range(2)]
        used = draw.choice((own, draw.randint(0, own)))
        pieces.append([[kv_heads, own, dim, *rows], used])
        first += used

    def numbers(kind: str, heads: int, tokens: int, dim: int, batch: int = batch) -> Numbers:
        array = draw.array(kind, batch * heads * tokens * dim)
        return Numbers(array, (heads * tokens * dim, tokens * dim, dim))

    kind, heads, mask = "u2" if half else "f4", kv_heads * group, None
    if draw.chance(0.5):
        mask = numbers("f4", 1, fresh, first + tokens)
    query, out = numbers("f4", heads, fresh, dim), numbers("f4", heads, fresh, dim)
    key, value = numbers(kind, kv_heads, tokens, dim), numbers(kind, kv_heads, tokens, dim)
    sizes = [batch, kv_heads, group, fresh, tokens, dim]
    given = [sizes, query, key, value, mask, out, draw.choice((0.125, 1e30)), pieces]
    sizes, *arrays, scale, pieces = spoil(given)
    made = [(native.Piece(*piece), used) for piece, used in pieces]
    addresses = [(0,) * 5 if one is None else one.given for one in arrays]
    native.attend(sizes, *addresses, scale, half, made, some_threads(draw))


def encode(draw: Draw, spoil: Callable[[Any], Any]) -> None:
    """Mean squares, or codes."""
    sources, measured = [], draw.chance(0.3)
    for _ in range(draw.randint(1, 2)):
        dim, half = any_dim(draw), draw.chance(0.5)
        heads, tokens, apart = shape(draw, dim)
        rows = heads * tokens
        numbers = draw.array("u2" if half else "f4", reach(heads, tokens, apart, dim))
        mean = draw.array("u1", heads * (4 + dim)) if tokens and draw.chance(0.5) else (0, 0)
        widths = WIDTHS[draw.below(256, rows)].astype(np.uint8)
        size = 2 + rows + int(widths.sum(dtype=int)) * (-(-dim // 8))
        out = np.zeros(rows, np.float32) if measured else np.zeros(size, np.uint8)
        turn = angles(draw, dim, tokens)
        own = (numbers, half, heads, tokens, apart, dim, *turn, factor(dim))
        sources.append((own, mean, widths, out))
    work = native.measure if measured else native.encode
    work(spoil(sources), some_threads(draw))


def rotate(draw: Draw, spoil: Callable[[Any], Any]) -> None:
    dim = draw.choice((2, 64, 128, 2 * draw.randint(1, 128)))
    heads, tokens, apart = shape(draw, dim)
    rows = draw.array("f4", reach(heads, tokens, apart, dim))
    turn = [draw.array("f4", tokens * dim // 2) for _ in range(2)]
    native.rotate(spoil((rows, False, heads, tokens, apart, dim, *turn, factor(dim))))


def look(draw: Draw, spoil: Callable[[Any], Any]) -> None:
    """Entries that only read bytes."""
    array = draw.array("u1", draw.choice((0, 1, 7, 8, 511, 512, 513, draw.randint(0, 3000))))
    (one,) = spoil([array])
    native.widths(one)
    native.sample([one, array])


@cache
def distribution(number: int) -> tuple[Array, Array, Array]:
    """Frequencies, starts, and what the decoder needs of each slot; number 0 has all symbols."""
    freq, slots = np.full(SYMBOLS, TOTAL // SYMBOLS, np.int32), np.arange(TOTAL)
    if number:
        freq[np.random.default_rng(number).integers(0, SYMBOLS - 1, 20)] = 0
    start = np.cumsum(freq, dtype=np.int32) - freq
    symbol = np.searchsorted(start + freq, slots, "right").clip(max=SYMBOLS - 1)
    entries = symbol << 24 | (freq[symbol] - 1) << 12 | (slots - start[symbol] & TOTAL - 1)
    return freq, start, entries.astype(np.uint32)


def rans(draw: Draw, spoil: Callable[[Any], Any]) -> None:
    """Quantize and code, then decode what came out, or what somebody made of it."""
    tokens, dim, classes = draw.randint(0, 6), draw.randint(1, 9), draw.randint(1, 2)
    rows = draw.below(2, tokens).astype(np.int32)
    table = draw.below(classes, 2 * dim).astype(np.int32).reshape(2, dim)
    points = draw.array("f4", classes * SYMBOLS).reshape(classes, SYMBOLS)
    chosen = [distribution(draw.randrange(8)) for _ in range(classes)]
    freq, start, lookup = (np.stack(tables) for tables in zip(*chosen, strict=True))
    values, found = np.zeros((tokens, dim), np.int32), np.zeros((tokens, dim), np.float32)
    units, activity = draw.array("f4", tokens), np.zeros(tokens, np.int32)
    z, tail = draw.array("f4", tokens * dim).reshape(tokens, dim), (values, found, activity)
    given = [z, rows, table, units, draw.choice((0.0, 0.2, 0.9)), points, *tail]
    way = draw.randrange(4)
    native.rans_quantize(*(spoil(given) if way == 0 else given))
    if draw.chance(0.3):
        values[:] = draw.array("i4", values.size).reshape(values.shape)
    words, escapes = np.zeros(values.size, np.uint16), np.zeros(5 * values.size, np.uint8)
    given = [values, rows, table, freq, start, words, escapes]
    at, far, states = native.rans_encode(*(spoil(given) if way == 1 else given))
    if draw.chance(0.3):  # no table that anybody made
        lookup[draw.randrange(classes), draw.randrange(TOTAL) :] = draw.randrange(1 << 32)
    states = np.array(states, np.uint32)
    streams: list[Any] = [words[at:].copy(), states, escapes[far:].copy()]
    for n in range(3):
        if draw.chance(0.2):
            streams[n] = draw.array(streams[n].dtype.str, 4 if n == 1 else draw.randint(0, 30))
    split = draw.randint(0, tokens) if draw.chance(0.3) else tokens
    chunks = [(*streams, 0, split), (*streams, split, tokens)]
    given = [chunks, rows, table, lookup.ravel(), points, units, found, activity]
    native.rans_decode(*(spoil(given) if way > 1 else given), some_threads(draw))


ENTRIES = (decode, decode, decode, attend, encode, encode, rans, rotate, look)


def run(seed: int, number: int) -> tuple[str, bool]:
    """One run: its entry, and whether it was computed."""
    draw = Draw(seed << 40 | number)
    native.use(draw.choice(native.isas()))
    entry, whole = draw.choice(ENTRIES), draw.chance(0.5)
    try:
        entry(draw, (lambda given: given) if whole else draw.spoiled)
    except REFUSED:
        if whole and entry not in (decode, rans):
            raise  # nothing was wrong with it
        return entry.__name__, False
    return entry.__name__, True


def main(arguments: list[str] | None = None) -> Counter[tuple[str, bool]]:
    """Fuzz; returns how many runs of each entry were computed and refused."""
    parser = argparse.ArgumentParser(prog="tests.attacks.fuzz_kernels")
    parser.add_argument("--runs", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--first", type=int, default=0, help="number of the first run")
    parser.add_argument("--trace", action="store_true", help="print a run's number before it")
    given = parser.parse_args(arguments)
    counts: Counter[tuple[str, bool]] = Counter()
    for number in range(given.first, given.first + given.runs):
        if number % 1000 == 0:
            faulthandler.dump_traceback_later(WAIT, exit=True, file=sys.__stderr__)
        if given.trace:
            print(number, flush=True)
        counts[run(given.seed, number)] += 1
    faulthandler.cancel_dump_traceback_later()
    native.use(native.isas()[-1])
    for name in sorted({name for name, _ in counts}):
        computed, refused = counts[name, True], counts[name, False]
        print(f"{name:8} {computed:>9,} computed {refused:>9,} refused")
    print(f"{counts.total():,} runs, no finding")
    return counts


if __name__ == "__main__":
    main()
