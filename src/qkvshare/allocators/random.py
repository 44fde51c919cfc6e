"""``random``: bits for tokens drawn by lot; what every allocator has to beat."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..codecs.bits import BitMap
from .base import Allocator, Demand, fill


@dataclass(frozen=True)
class Random(Allocator):
    """Worth drawn from an exponential distribution, the same for all rows of a token."""

    seed: int = 0

    name = "random"

    def allocate(self, demand: Demand, budget: int) -> BitMap:
        """Raises `BudgetError`."""
        tokens = max(at.tokens for at in demand.shapes)
        draw = torch.rand(tokens, generator=torch.Generator().manual_seed(self.seed))
        luck = -torch.log(draw.clamp(min=1e-9))
        # Sliding layers hold the last tokens.
        worth = [luck[tokens - at.tokens :].expand(2, at.kv_heads, -1) for at in demand.shapes]
        return fill(demand, budget, worth, demand.codec.distortion)
