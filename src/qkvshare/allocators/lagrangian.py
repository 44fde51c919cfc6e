"""``lagrangian``: least weighted distortion under the budget, over every row at once.

A row's worth is its energy times ``floor + share · salience``. The floor is what keeps facts that
nobody has asked about yet: such a row still counts by what its loss would distort. Salience adds
bits for the few rows that every query looks at. Energy and salience are taken relative to their
mean over the layer, keys and values apart.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..codecs.bits import BitMap
from .base import Allocator, Demand, fill


@dataclass(frozen=True)
class Lagrangian(Allocator):
    """``worth = energy · (floor + share · salience)``."""

    share: float = 1.0
    floor: float = 1.0

    name = "lagrangian"
    uses_salience = True

    def allocate(self, demand: Demand, budget: int) -> BitMap:
        """Raises `BudgetError`."""
        assert demand.salience is not None
        worth = []
        for energy, salience in zip(demand.energy, demand.salience, strict=True):
            both = torch.stack([energy.keys, energy.values])  # [2, kv_heads, tokens]
            both = both / both.mean((1, 2), keepdim=True).clamp(min=1e-30)
            worth.append(both * (self.floor + self.share * salience.to(both.device)))
        return fill(demand, budget, worth, demand.codec.distortion)
