"""``uniform``: the same bits for every row; the allocation that ignores everything.

Where the budget lies between two widths, tokens evenly spaced over the context get the wider one.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..codecs.bits import BitMap
from .base import Allocator, Demand, evenly, in_turn


@dataclass(frozen=True)
class Uniform(Allocator):
    """No parameters."""

    name = "uniform"

    def allocate(self, demand: Demand, budget: int) -> BitMap:
        """Raises `BudgetError`."""
        worth = [evenly(at.tokens).expand(2, at.kv_heads, -1) for at in demand.shapes]
        return in_turn(demand, budget, worth)
