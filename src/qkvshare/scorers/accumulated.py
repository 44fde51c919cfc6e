"""``accumulated``: all the attention a token has received (H2O, arXiv:2306.14048)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .base import Glance, Scorer


@dataclass(frozen=True)
class Accumulated(Scorer):
    """The sum over all queries: early tokens, which more queries see, gather more."""

    name = "accumulated"

    def probes(self, tokens: int) -> Tensor:
        """Every query."""
        return torch.arange(tokens)

    def score(self, glance: Glance) -> Tensor:
        """Summed over the query heads that share a KV head, too."""
        total = glance.keys.new_zeros(glance.keys.shape[0], glance.tokens, dtype=torch.float32)
        for part in glance.slices():
            total += part.attention()[..., : glance.tokens].sum((1, 2))
        return total
