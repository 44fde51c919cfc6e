"""``window``: attention of the newest queries, pooled (SnapKV, arXiv:2404.14469)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..registry import require_range
from .base import Glance, Scorer


@dataclass(frozen=True)
class Window(Scorer):
    """The paper's own sizes: 32 queries, maxima over 7 tokens."""

    size: int = 32
    pool: int = 7

    name = "window"

    def __post_init__(self) -> None:
        """Raise `CodecError` for numbers that mean nothing."""
        require_range(self, "size", "pool")

    def probes(self, tokens: int) -> Tensor:
        """The newest."""
        return torch.arange(max(0, tokens - self.size), tokens)

    def score(self, glance: Glance) -> Tensor:
        """The window itself, which SnapKV keeps whole, gets the largest score of any."""
        score = glance.attention()[..., : glance.tokens].mean((1, 2))
        score = F.max_pool1d(score[:, None], self.pool, 1, self.pool // 2)[:, 0]
        score[:, max(0, glance.tokens - self.size) :] = score.amax(1, keepdim=True)
        return score
