"""``recency``: the newer, the more; it asks neither queries nor keys."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..registry import require_range
from .base import Glance, Scorer


@dataclass(frozen=True)
class Recency(Scorer):
    """Halves with every ``half_life`` tokens of age."""

    half_life: float = 256.0

    name = "recency"

    def __post_init__(self) -> None:
        """Raise `CodecError` for numbers that mean nothing."""
        require_range(self, "half_life", low=0.01)

    def score(self, glance: Glance) -> Tensor:
        """The same for all heads."""
        age = torch.arange(glance.tokens - 1, -1, -1, device=glance.keys.device)
        return torch.exp2(-age / self.half_life).expand(glance.keys.shape[0], -1)
