"""``recency``: bits fall with a token's age; the age-tiered split that several systems ship."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..codecs.bits import BitMap
from .base import Allocator, Demand, fill


@dataclass(frozen=True)
class Recency(Allocator):
    """Worth ``(age + 1) ** -power``, age in tokens."""

    power: float = 1.0

    name = "recency"

    def allocate(self, demand: Demand, budget: int) -> BitMap:
        """Raises `BudgetError`."""
        worth = []
        for at in demand.shapes:
            age = torch.arange(at.tokens - 1, -1, -1, dtype=torch.float64)
            worth.append(((age + 1) ** -self.power).expand(2, at.kv_heads, -1))
        return fill(demand, budget, worth, demand.codec.distortion)
