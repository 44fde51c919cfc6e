"""``salient``: two widths, the wider for the most salient tokens (ZipCache, arXiv:2405.14256)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..codecs.bits import BitMap
from ..registry import require_range
from .base import Allocator, Demand, evenly, in_turn


@dataclass(frozen=True)
class Salient(Allocator):
    """A share ``ratio`` of the tokens is salient and gets about two bits more than the others.

    ZipCache's own demonstration has 60 % of the tokens at 4 bits and the others at 2; here the
    widths follow from the budget, and 20 % to 40 % had the least KL on training problems of GSM8K.
    """

    ratio: float = 0.3
    ahead: int = 2

    name = "salient"

    def __post_init__(self) -> None:
        """Raise `CodecError` for numbers that mean nothing."""
        require_range(self, "ahead", low=0, high=16)

    uses_salience = True

    def allocate(self, demand: Demand, budget: int) -> BitMap:
        """Raises `BudgetError`."""
        assert demand.salience is not None
        worth = []
        for at, salience in zip(demand.shapes, demand.salience, strict=True):
            token = salience.mean(0).cpu()
            chosen = token.topk(round(self.ratio * at.tokens)).indices
            lead = torch.ones(at.tokens)
            lead[chosen] = 16.0**self.ahead
            worth.append((evenly(at.tokens) * lead).expand(2, at.kv_heads, -1))
        return in_turn(demand, budget, worth)
