"""Range coding: every integer comes back, at the price that the tables say."""

from __future__ import annotations

from itertools import pairwise
from unittest.mock import patch

import constriction
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qkvshare.codecs.entropy import CLASSES, SHIFT, make_tables, shifted
from qkvshare.kernels import rans
from qkvshare.kernels.native import native

EMPTY = np.zeros((CLASSES, rans.SYMBOLS))
TABLES = make_tables(EMPTY, EMPTY)

# What tables know, what they have never seen, and what no table can hold.
numbers = st.one_of(st.integers(-3, 3), st.integers(-40, 40), st.integers(-(2**30), 2**30))


def encode(values: np.ndarray, rows: np.ndarray, table: np.ndarray) -> tuple:
    words = np.empty(values.size, np.uint16)
    escapes = np.empty(5 * values.size, np.uint8)
    first, far, states = rans.encode(values, rows, table, TABLES.freq, TABLES.start, words, escapes)
    return words[first:], states, escapes[far:]


def decode(coded: tuple, rows: np.ndarray, table: np.ndarray) -> tuple[bool, np.ndarray]:
    words, states, escapes = coded
    out = np.empty((len(rows), table.shape[1]), np.float32)
    # Points are whole numbers here: what comes out is what went in.
    points = np.broadcast_to(
        np.arange(rans.SYMBOLS, dtype=np.float32) - rans.LARGEST, TABLES.points.shape
    ).copy()
    units, activity = np.ones(len(rows), np.float32), np.empty(len(rows), np.int32)
    chunks = [(words, states, escapes, slice(0, len(rows)))]
    even = rans.decode(chunks, rows, table, TABLES.lookup, points, units, out, activity)
    if even:
        assert (activity == np.minimum(np.abs(out), rans.LARGEST).sum(1)).all()
    return even, out


@given(data=st.data(), columns=st.integers(1, 9), tokens=st.integers(1, 12))
def test_every_integer_comes_back(data: st.DataObject, columns: int, tokens: int) -> None:
    draw = data.draw
    size = columns * tokens
    flat = draw(st.lists(numbers, min_size=size, max_size=size))
    values = np.array(flat, np.int32).reshape(tokens, columns)
    base = draw(st.lists(st.integers(0, CLASSES - 1), min_size=columns, max_size=columns))
    shifts = draw(st.lists(st.integers(0, 2 * SHIFT), min_size=tokens, max_size=tokens))
    table, rows = shifted(np.array(base, np.int32)), np.array(shifts, np.int32)
    even, out = decode(encode(values, rows, table), rows, table)
    assert even
    assert (out == values.astype(np.float32)).all()


@pytest.mark.parametrize("scale", [0.02, 0.3, 1.0, 4.0])
def test_size_is_what_the_tables_say(scale: float) -> None:
    """Within 4 % of the entropy under the codec's own model, escapes counted."""
    draw = np.random.default_rng(0)
    values = np.rint(draw.laplace(size=(512, 192)) * scale).astype(np.int32)
    number = round(32 + 4 * np.log2(scale))
    table = np.full((1, 192), number, np.int32)
    words, _, escapes = encode(values, np.zeros(512, np.int32), table)
    freq = TABLES.freq[number]
    inside = np.abs(values) <= rans.LARGEST
    symbols = np.where(inside, values + rans.LARGEST, rans.ESCAPE)
    symbols = np.where(freq[symbols] > 0, symbols, rans.ESCAPE)
    ideal = -np.log2(freq[symbols] / rans.TOTAL).sum() / 8 + escapes.nbytes
    assert words.nbytes + escapes.nbytes <= 1.005 * ideal + 16


@pytest.mark.parametrize("number", [16, 28, 36])
def test_as_small_as_a_maintained_coder(number: int) -> None:
    """constriction's ANS coder, given the same distribution, needs as many bytes."""
    draw = np.random.default_rng(2)
    scale = 2.0 ** ((number - 32) / 4)
    values = np.rint(draw.laplace(size=(512, 192)) * scale).clip(-30, 30).astype(np.int32)
    freq = TABLES.freq[number]
    values = np.where(freq[values + rans.LARGEST] > 0, values, 0)
    used = np.flatnonzero(freq)
    model = constriction.stream.model.Categorical(freq[used] / rans.TOTAL, perfect=False)
    coder = constriction.stream.stack.AnsCoder()
    coder.encode_reverse(
        np.searchsorted(used, values.ravel() + rans.LARGEST).astype(np.int32), model
    )
    words, _, escapes = encode(values, np.zeros(512, np.int32), np.full((1, 192), number, np.int32))
    assert len(escapes) == 0
    assert abs(words.nbytes - coder.get_compressed().nbytes) < 0.005 * words.nbytes + 32


@settings(max_examples=60)
@given(at=st.integers(0, 10**6), change=st.integers(1, 255), cut=st.booleans())
def test_damage_never_reads_beyond(at: int, change: int, cut: bool) -> None:
    """Damaged streams come out odd or as other numbers; nothing else is read or written."""
    draw = np.random.default_rng(1)
    values = np.rint(draw.laplace(size=(20, 7)) * 9).astype(np.int32)
    table = np.full((1, 7), 30, np.int32)
    rows = np.zeros(20, np.int32)
    words, states, escapes = (part.copy() for part in encode(values, rows, table))
    if cut:
        assert len(escapes) > 1
        even, _ = decode((words[:-1], states, escapes[:-1]), rows, table)
        assert not even
        return
    raw = words.view(np.uint8)
    raw[at % len(raw)] ^= change
    even, out = decode((words, states, escapes), rows, table)
    assert not even or np.isfinite(out).all()


def test_tables_are_whole() -> None:
    assert (TABLES.freq.sum(1) == rans.TOTAL).all()
    assert (TABLES.freq[:, rans.ESCAPE] > 0).all()
    assert (np.diff(TABLES.expected) >= 0).all()


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_chunks_on_any_threads(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    draw, columns = np.random.default_rng(0), 7
    ends = [0, 5, 6, 40, 41, 100]
    runs = [slice(*pair) for pair in pairwise(ends)]
    values = draw.integers(-60, 60, (100, columns)).astype(np.int32)  # escapes too
    table = draw.integers(0, CLASSES, (3, columns)).astype(np.int32)
    rows = draw.integers(0, 3, 100).astype(np.int32)
    units = np.exp2(draw.integers(-3, 3, 100)).astype(np.float32)
    points = np.tile(np.arange(rans.SYMBOLS, dtype=np.float32) - rans.LARGEST, (CLASSES, 1))
    coded = [(*encode(values[at], rows[at], table), at) for at in runs]
    out, activity = np.zeros((100, columns), np.float32), np.zeros(100, np.int32)
    given = rows, table, TABLES.lookup, points, units
    assert rans.decode(coded, *given, out, activity)
    assert (out == values * units[:, None]).all()
    assert (activity == np.minimum(np.abs(values), rans.LARGEST).sum(1)).all()
    words, states, escapes, at = coded[2]
    coded[2] = words[:-1], states, escapes, at
    assert not rans.decode(coded, *given, out, activity)
    assert rans.decode([], *given, out, activity)


@pytest.mark.skipif(native is None, reason="there are no native kernels here")
@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6), scale=st.sampled_from([0.1, 1.0, 9.0, 60.0, 1e9]),
    columns=st.integers(1, 9), damage=st.booleans(),
)  # fmt: skip
def test_the_same_as_plain_python(seed: int, scale: float, columns: int, damage: bool) -> None:
    """All that is written, also of damaged streams."""
    draw = np.random.default_rng(seed)
    z = (draw.laplace(size=(20, columns)) * scale).astype(np.float32)
    table = draw.integers(0, CLASSES, (5, columns)).astype(np.int32)
    rows = draw.integers(0, 5, 20).astype(np.int32)
    units = np.exp2(draw.integers(-3, 3, 20)).astype(np.float32)
    made = []
    for kernels in (native, None):
        values, activity = np.zeros(z.shape, np.int32), np.zeros(20, np.int32)
        out, words = np.zeros_like(z), np.zeros(z.size, np.uint16)
        escapes, dead = np.zeros(5 * z.size, np.uint8), np.float32(0.1)
        with patch.object(rans, "native", kernels):
            rans.quantize(z, rows, table, units, dead, TABLES.points, values, out, activity)
            coded = rans.encode(values, rows, table, TABLES.freq, TABLES.start, words, escapes)
        made.append((*coded, words, escapes, values, out, activity))
    assert all(map(np.array_equal, *made))
    first, far, states, words, escapes, *_ = made[0]
    words, escapes = words[first:], escapes[far:]
    if damage:
        states = states ^ draw.integers(0, 2**32, 4, np.uint32)
        words = draw.integers(0, 2**16, draw.integers(0, 200), np.uint16)
        escapes = draw.integers(0, 256, draw.integers(0, 50), np.uint8)
    found = []
    for kernels in (native, None):
        out, activity = np.zeros_like(z), np.zeros(20, np.int32)
        given_ = rows, table, TABLES.lookup, TABLES.points, units, out, activity
        with patch.object(rans, "native", kernels):
            even = rans.decode([(words, states, escapes, slice(0, 20))], *given_)
        assert even or damage
        found.append((even, out, activity))
    assert all(map(np.array_equal, *found))


@pytest.mark.skipif(native is None, reason="there are no native kernels here")
@pytest.mark.parametrize(
    "change", ["rows", "table", "units", "lookup", "points", "chunk", "states", "aligned"]
)
def test_sizes_are_asked(change: str) -> None:
    """What would be read or written outside of an array is refused before anything is."""
    given_ = {
        "rows": np.zeros(4, np.int32), "table": np.zeros((1, 3), np.int32),
        "lookup": TABLES.lookup, "points": TABLES.points, "units": np.ones(4, np.float32),
        "out": np.zeros((4, 3), np.float32), "activity": np.zeros(4, np.int32),
    }  # fmt: skip
    states, at = np.full(4, 1 << 16, np.uint32), slice(0, 4)
    words, escapes = np.zeros(9, np.uint16), np.zeros(0, np.uint8)
    rans.decode([(words, states, escapes, at)], **given_)
    if change == "rows":
        given_["rows"] = np.full(4, 1, np.int32)
    elif change == "table":
        given_["table"] = np.full((1, 3), -1, np.int32)
    elif change == "chunk":
        at = slice(2, 5)
    elif change == "states":
        states = states[:3]
    elif change == "aligned":
        words = np.zeros(19, np.uint8)[1:].view(np.uint16)
    else:
        given_[change] = given_[change][:-1]
    with pytest.raises(ValueError, match="."):
        rans.decode([(words, states, escapes, at)], **given_)
