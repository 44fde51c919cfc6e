"""Two ways on the same problems: the difference with its interval, and whether it can be chance."""

from __future__ import annotations

from collections.abc import Sequence
from math import comb
from typing import Any

from .results import interval


def points_lost(reference: Sequence[bool], found: Sequence[bool]) -> dict[str, Any]:
    """Accuracy of ``found`` minus that of ``reference``, in points; bootstrap over problems."""
    return interval([100.0 * (b - a) for a, b in zip(reference, found, strict=True)])


def mcnemar(reference: Sequence[bool], found: Sequence[bool]) -> float:
    """p of McNemar's exact test: both are equally often right where they differ."""
    pairs = list(zip(reference, found, strict=True))
    lost = sum(a and not b for a, b in pairs)
    won = sum(b and not a for a, b in pairs)
    tail = sum(comb(lost + won, k) for k in range(min(lost, won) + 1))
    return min(1.0, float(2 * tail / 2 ** (lost + won)))
