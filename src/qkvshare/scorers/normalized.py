"""``normalized``: accumulated attention over the number of queries that see a token.

ZipCache (arXiv:2405.14256), which takes a tenth of the queries as probes: half of them the newest,
half of them drawn.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .base import Glance, Scorer


@dataclass(frozen=True)
class Normalized(Scorer):
    """``ratio`` of the queries are probes."""

    ratio: float = 0.1
    seed: int = 0

    name = "normalized"

    def probes(self, tokens: int) -> Tensor:
        """Half the newest, half drawn from the others."""
        half = max(1, round(tokens * self.ratio / 2))
        newest = torch.arange(max(0, tokens - half), tokens)
        generator = torch.Generator().manual_seed(self.seed)
        drawn = torch.randperm(max(0, tokens - half), generator=generator)[:half]
        return torch.cat([drawn, newest]).sort().values

    def score(self, glance: Glance) -> Tensor:
        """Over probes and over the query heads that share a KV head."""
        seen = glance.sight.visible[:, : glance.tokens].sum(0).clamp(min=1)
        return glance.attention()[..., : glance.tokens].mean(1).sum(1) / seen
