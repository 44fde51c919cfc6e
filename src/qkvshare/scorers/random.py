"""``random``: what a scorer must beat."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .base import Glance, Scorer


@dataclass(frozen=True)
class Random(Scorer):
    """Uniform numbers, the same for all heads and layers."""

    seed: int = 0

    name = "random"

    def score(self, glance: Glance) -> Tensor:
        """Drawn anew for each layer, with the same seed."""
        generator = torch.Generator().manual_seed(self.seed)
        drawn = torch.rand(glance.tokens, generator=generator)
        return drawn.to(glance.keys.device).expand(glance.keys.shape[0], -1)
