"""``attention``: the mean attention that a token receives from the queries that can see it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .base import Glance, Scorer


@dataclass(frozen=True)
class Attention(Scorer):
    """``count`` queries, evenly spaced and ending with the last; averaged over query heads."""

    count: int = 64

    name = "attention"

    def probes(self, tokens: int) -> Tensor:
        """Evenly spaced."""
        count = min(self.count, tokens)
        return (torch.arange(1, count + 1) * tokens) // count - 1

    def score(self, glance: Glance) -> Tensor:
        """A late token is seen by few queries: the mean is over those, not over all."""
        seen = glance.visible[:, : glance.tokens].sum(0).clamp(min=1)
        return glance.attention()[..., : glance.tokens].mean(1).sum(1) / seen
