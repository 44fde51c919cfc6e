"""``chunk-router``: one decision for a chunk of tokens (MoQAE, arXiv:2506.07533).

A router reads each token's hidden state and votes among experts of 16, 4 and 2 bits; the chunk
follows its tokens, and the first chunk stays as exact as it can be. As in the paper's routing
sharing, one decision serves all layers. The paper takes the majority; to meet any budget, here the
mean of the expected widths orders the chunks. It is trained by `qkvshare calibrate`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..codecs.bits import BitMap
from ..registry import require_range
from .base import Demand
from .learned import Learned, expected_width

WIDTHS = (2, 4, 16)
SIZES = (64,)
# More than any difference of widths.
_FIRST = 32


@dataclass(frozen=True)
class ChunkRouter(Learned):
    """Chunks of ``chunk`` tokens, with what ``profile`` has learned."""

    chunk: int = 32

    name = "chunk-router"

    def __post_init__(self) -> None:
        """Raise `CodecError` for numbers that mean nothing."""
        require_range(self, "chunk")

    def allocate(self, demand: Demand, budget: int) -> BitMap:
        """Raises `BudgetError`, and `ProfileError` without a profile for it."""
        assert demand.features is not None
        chances = self.classify(demand.features.hidden, len(WIDTHS))
        widths = expected_width(chances, WIDTHS)
        means = [part.mean().expand(len(part)) for part in torch.split(widths, self.chunk)]
        if demand.sinks:  # the context begins here
            means[0] = means[0] + _FIRST
        return self.in_order(demand, budget, torch.cat(means))
