"""``uniform``: the same bits for every row; the allocation that ignores everything.

Where the budget lies between two widths, tokens evenly spaced over the context get the wider one.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..codecs.bits import BitMap
from .base import Allocator, Demand, fill


@dataclass(frozen=True)
class Uniform(Allocator):
    """No parameters."""

    name = "uniform"

    def allocate(self, demand: Demand, budget: int) -> BitMap:
        """Raises `BudgetError`."""
        worth = []
        for at in demand.shapes:
            # The golden ratio's multiples spread evenly, however many of them are taken. The spread
            # is far below a step between tiers, so no token is two tiers ahead of another.
            order = (torch.arange(at.tokens) * 0.6180339887498949) % 1
            worth.append(torch.exp2(order).expand(2, at.kv_heads, -1))
        # Each further bit divides by 16, four octaves, so that the spread decides within one tier.
        steps = [16.0**-bits for bits in demand.codec.tiers]
        return fill(demand, budget, worth, steps)
