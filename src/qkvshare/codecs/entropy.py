"""The distributions of the transform codec: one for each scale, in quarters of an octave.

Which one a number has follows from whole numbers only (its scale in the profile, the step, the
exponent of its token, and how large the token's numbers were in what was coded before), so that
encoder and decoder, on any machine, never disagree.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from ..kernels.rans import ESCAPE, LARGEST, SYMBOLS, TOTAL

Ints = npt.NDArray[np.int32]
Floats = npt.NDArray[np.float32]

DEAD = 0.1  # part of a step that is rounded down besides the half
OCTAVE = 4  # classes per factor of two
CLASSES = 56
_MIDDLE = 32  # the class of numbers whose mean magnitude is one step
# Largest shift of a row's classes: exponents from the allocator, and what the token's past says.
SHIFT = 28
EXPECTED = 64  # expected magnitudes are in this part of a step
# Half of the logarithm that a token's past suggests: sums of few magnitudes are noisy.
_TRUST = 0.75
_RATIOS = np.array(
    [1024 * 2.0 ** ((k - 0.5) / (OCTAVE * _TRUST)) for k in range(-7, 9)], np.float64
).astype(np.int64)


@dataclass(frozen=True, eq=False)
class Tables:
    """``freq`` int32 ``[classes, symbols]`` with sum 4096, 0 for what is escaped; ``points``
    float32, where a symbol's numbers lie in steps; ``expected`` int32 ``[classes]``, the mean
    magnitude in 1/64 step."""

    freq: Ints
    points: Floats
    expected: Ints

    @cached_property
    def start(self) -> Ints:
        """Where each symbol's slots begin."""
        return (np.cumsum(self.freq, axis=1) - self.freq).astype(np.int32)

    @cached_property
    def lookup(self) -> npt.NDArray[np.uint32]:
        """For each class and slot what the decoder needs, see `kernels.rans.decode`."""
        out = np.zeros((len(self.freq), TOTAL), np.uint32)
        for table, (freq, start) in enumerate(zip(self.freq, self.start, strict=True)):
            symbol = np.repeat(np.arange(SYMBOLS), freq)
            inside = np.arange(TOTAL) - start[symbol]
            out[table] = (symbol << 24) | (freq[symbol] - 1) << 12 | inside
        return out.reshape(-1)


def make_tables(counts: npt.NDArray[Any], sums: npt.NDArray[Any], weight: float = 64.0) -> Tables:
    """From what was counted in each class, with ``weight`` counts of a Laplace distribution."""
    size = np.abs(np.arange(ESCAPE) - LARGEST)
    freq = np.zeros((CLASSES, SYMBOLS), np.int32)
    points = np.zeros((CLASSES, SYMBOLS), np.float32)
    expected = np.zeros(CLASSES, np.int32)
    for number in range(CLASSES):
        scale = 2.0 ** ((number - _MIDDLE) / OCTAVE)
        decay = np.exp(-1 / max(scale, 1e-3))
        prior = np.where(
            size == 0, 1 - decay**0.6, 0.5 * (decay**0.6) * (1 - decay) * decay ** (size - 1.0)
        )
        prior = np.append(prior, max(0.0, 1 - prior.sum()))
        # Symbols of either sign are taken together: signs carry nothing.
        own = counts[number].astype(np.float64)
        own[:ESCAPE] = (own[:ESCAPE] + own[:ESCAPE][::-1]) / 2
        moved = sums[number][:ESCAPE] + sums[number][:ESCAPE][::-1]
        freq[number] = _normalize((own + weight * prior) / (own.sum() + weight))
        both = 2 * own[:ESCAPE]
        laplace = scale - decay / (1 - decay) - 0.6 if scale > 0.05 else -0.2
        offset = (moved + weight * np.clip(laplace, -0.4, 0.1)) / (both + weight)
        # Few counts tell little of the larger ones, which lie nearly in the middle.
        offset = np.where(size > 4, 0, offset)
        points[number, :ESCAPE] = np.sign(np.arange(ESCAPE) - LARGEST) * (size + offset)
        sizes = np.append(size, LARGEST)
        mean = ((own + weight * prior) * sizes).sum() / (own.sum() + weight)
        expected[number] = max(1, round(EXPECTED * mean))
    return Tables(freq, points, expected)


def _normalize(chances: npt.NDArray[np.float64]) -> Ints:
    """Whole numbers with sum 4096; a symbol that deserves less than one is escaped."""
    kept = chances * TOTAL >= 0.75
    kept[ESCAPE] = True
    wanted = np.where(kept, chances, 0)
    wanted[ESCAPE] += chances[~kept].sum()
    freq = np.where(kept, np.maximum(1, np.rint(wanted * TOTAL)), 0).astype(np.int32)
    while (off := TOTAL - int(freq.sum())) != 0:
        at = int(freq.argmax())
        freq[at] += off if freq[at] + off > 0 else 1 - freq[at]
    return freq


def exact_table(values: Ints) -> Ints:
    """Frequencies ``[1, symbols]`` of ``values``, all within `LARGEST`."""
    counts = np.bincount(values + LARGEST, minlength=SYMBOLS).astype(np.float64)
    freq = np.where(counts > 0, np.maximum(1, np.floor(counts / counts.sum() * TOTAL)), 0)
    freq[int(freq.argmax())] += TOTAL - freq.sum()
    return freq.astype(np.int32)[None]


def classes(scales: npt.NDArray[np.int16], number: int, reference: int) -> Ints:
    """The class of each column at a step of ``2 ** (number / 64)``.

    ``scales [5, columns]``: mean magnitudes as logarithms in 1/256 octave, at steps two octaves
    below ``reference`` to two above, each an octave from the next.
    """
    position = min(max(number - reference + 128, 0), 255)
    low, rest = position >> 6, position & 63
    wide = scales.astype(np.int64)
    between = (wide[low] * (64 - rest) + wide[low + 1] * rest) >> 6
    return np.asarray((between - 4 * number + 64 * _MIDDLE + 32) >> 6, np.int32)


def shifted(base: Ints) -> Ints:
    """Tables of every shift, ``[2 · SHIFT + 1, columns]``, as indices of classes."""
    shifts = np.arange(-SHIFT, SHIFT + 1, dtype=np.int32)[:, None]
    return np.asarray(np.clip(base + shifts, 0, CLASSES - 1), np.int32)


def gain(activity: npt.NDArray[Any], expected: npt.NDArray[Any]) -> Ints:
    """How many classes larger a token's numbers are than expected: ``[tokens]``, -8 to 8."""
    ratio = ((activity.astype(np.int64) * EXPECTED + 256) << 10) // (expected + 256)
    return np.asarray(np.searchsorted(_RATIOS, ratio, side="right") - 8, np.int32)


def tally(z: Any, values: Any, rows: Any, table: Any, units: Any, counts: Any, sums: Any) -> None:
    """Add to ``counts [tables, symbols]``, and to ``sums`` how far magnitudes are from integers."""
    symbols = np.where(np.abs(values) <= LARGEST, values + LARGEST, ESCAPE)
    place = (table[rows] * SYMBOLS + symbols).ravel()
    counts += np.bincount(place, minlength=counts.size).reshape(counts.shape)
    size = np.abs(z) * (np.float32(1) / units)[:, None]
    far = (size - np.abs(values).astype(np.float64)).ravel()
    sums += np.bincount(place, far, minlength=sums.size).reshape(sums.shape)
