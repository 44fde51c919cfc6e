"""``salient``: two widths, the wider for the most salient tokens (ZipCache, arXiv:2405.14256)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..codecs.bits import BitMap
from .base import Allocator, Demand, fill


@dataclass(frozen=True)
class Salient(Allocator):
    """A share ``ratio`` of the tokens is salient and gets about two bits more than the others.

    ZipCache's own demonstration has ratio 0.6 with 4 and 2 bits; here the widths follow from the
    budget.
    """

    ratio: float = 0.4
    ahead: int = 2

    name = "salient"
    uses_salience = True

    def allocate(self, demand: Demand, budget: int) -> BitMap:
        """Raises `BudgetError`."""
        worth = []
        for number, at in enumerate(demand.shapes):
            order = (torch.arange(at.tokens) * 0.6180339887498949) % 1  # as in `uniform`
            token = torch.exp2(order).expand(2, at.kv_heads, -1)
            if demand.salience is not None:
                lead = self._lead(demand.salience[number].mean(0).cpu())
                token = token * lead
            worth.append(token)
        steps = [16.0**-bits for bits in demand.codec.tiers]
        return fill(demand, budget, worth, steps)

    def _lead(self, salience: Tensor) -> Tensor:
        chosen = salience.topk(round(self.ratio * len(salience))).indices
        lead = torch.ones(len(salience))
        lead[chosen] = 16.0**self.ahead
        return lead
