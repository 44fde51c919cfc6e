"""``reconstruction``: what a model that repeats the context looks at (KVzip, arXiv:2505.23416).

The context is read once more behind itself; a token's score is the largest attention that any query
of the repetition pays to it. It asks no question, so it favours none; it costs more than a prefill.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .base import Glance, Scorer


@dataclass(frozen=True)
class Reconstruction(Scorer):
    """No parameters."""

    name = "reconstruction"
    rereads = True

    def probes(self, tokens: int) -> Tensor:
        """Queries of the context itself do not repeat it; any will do to be asked behind it."""
        return torch.arange(tokens)

    def score(self, glance: Glance) -> Tensor:
        """Largest over queries and over the query heads that share a KV head."""
        most = glance.keys.new_zeros(glance.keys.shape[0], glance.tokens, dtype=torch.float32)
        for part in glance.slices():
            most = torch.maximum(most, part.attention()[..., : glance.tokens].amax((1, 2)))
        return most
