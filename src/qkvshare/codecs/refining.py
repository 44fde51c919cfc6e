"""Refinements: what a card adds to its base, half a step at a time, and can be cut off.

A number that was 0 so far is asked again whether it is, and of any other in which half of its
interval it lies. Refinements predict nothing: a layer is predicted from the bases of those below,
so that a cut moves no other number. (Successive refinement: Equitz and Cover, 1991.)
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..kernels.rans import ESCAPE, LARGEST, SYMBOLS, TOTAL
from .entropy import CLASSES, OCTAVE, Floats, Ints, Tables

# Tables of numbers that were 0 so far, then of the others, by the class of the base.
REFINED = 2 * CLASSES


def refine(z: Floats, before: Floats, units: Floats, dead: float) -> Ints:
    """Of ``z [tokens, columns]``, known as ``before``: -1, 0 or 1, in the direction of ``before``.

    ``units [tokens]`` is the new step.
    """
    rest = np.where(before < 0, before - z, z - before)
    size = np.floor(np.abs(rest) / units[:, None] + np.float32(0.5 - dead))
    first = np.sign(rest) * np.minimum(size, 1)
    return np.where(before == 0, first, np.where(rest < 0, -1, 1)).astype(np.int32)


def refined_classes(before: Floats, rows: Ints, table: Ints, level: int) -> Ints:
    """Which of the tables each number has at ``level`` (1, 2, …), ``[tokens, columns]``."""
    base = np.minimum(table[rows] + OCTAVE * level, CLASSES - 1)
    return np.where(before == 0, base, CLASSES + base).astype(np.int32)


def add(before: Floats, more: Floats) -> None:
    """Move ``before`` by what a refinement says, in its own direction."""
    before += np.where(before < 0, -more, more)


def tally_refined(
    z: Floats, before: Floats, units: Floats, values: Ints, found: Ints,
    counts: npt.NDArray[np.float64], sums: npt.NDArray[np.float64],
) -> None:  # fmt: skip
    """Add to ``counts`` and ``sums [REFINED, symbols]``: how often, and how far in steps."""
    rest = np.where(before < 0, before - z, z - before) / units[:, None]
    at = (found * SYMBOLS + values + LARGEST).ravel()
    counts += np.bincount(at, minlength=counts.size).reshape(counts.shape)
    far = np.clip(rest, -1.5, 1.5).ravel()
    sums += np.bincount(at, far, minlength=counts.size).reshape(counts.shape)


def refined_tables(counts: npt.NDArray[np.float64], sums: npt.NDArray[np.float64]) -> Tables:
    """From what was counted, with a few counts of each symbol that can be."""
    prior = np.zeros((REFINED, SYMBOLS))
    middle = np.zeros((REFINED, SYMBOLS))
    for symbol, at in ((-1, -0.5), (0, 0.0), (1, 0.5)):
        prior[:, LARGEST + symbol], middle[:, LARGEST + symbol] = 8.0, at
    prior[CLASSES:, LARGEST] = 0
    prior[:, ESCAPE] = 0.01
    own = counts + prior
    share = own / own.sum(1, keepdims=True) * (TOTAL - SYMBOLS)
    freq = np.where(own > 0, 1 + np.floor(share), 0).astype(np.int32)
    best = freq.argmax(1)
    freq[np.arange(REFINED), best] += TOTAL - freq.sum(1)
    points = (sums + prior * middle) / np.maximum(own, 1e-9)
    return Tables(freq, points.astype(np.float32), np.zeros(REFINED, np.int32))
