"""``attention``: the mean attention that a token receives from the probes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .base import Glance, Scorer


@dataclass(frozen=True)
class Attention(Scorer):
    """No parameters. Averaged over probes and over the query heads that share a KV head."""

    name = "attention"

    def score(self, glance: Glance) -> Tensor:
        """Probabilities are taken over context and probes together, as the model takes them."""
        queries, keys = glance.queries.float(), glance.keys.float()
        logits = queries @ keys[:, None].mT * glance.scaling  # [kv_heads, group, probes, keys]
        logits = logits.masked_fill(~glance.visible, float("-inf"))
        return torch.softmax(logits, dim=-1)[..., : glance.tokens].mean((1, 2))
