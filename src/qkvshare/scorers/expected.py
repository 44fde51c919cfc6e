"""``expected``: attention that queries to come are expected to pay (arXiv:2510.00636).

Queries before RoPE are taken as Gaussian, with the mean ``μ`` and covariance ``Σ`` of those seen.
Turned to the positions that follow, averaged over these, they give ``μ̄`` and ``Σ̄``; then a key's
expected unnormalised attention is ``exp(s · k·μ̄ + s² · kᵀΣ̄k / 2)`` with the model's scaling ``s``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..registry import require_range
from .base import Glance, Scorer, evenly_spaced


@dataclass(frozen=True)
class Expected(Scorer):
    """Statistics of ``count`` queries, at the next ``future`` positions."""

    count: int = 256
    future: int = 512

    name = "expected"

    def __post_init__(self) -> None:
        """Raise `CodecError` for numbers that mean nothing."""
        require_range(self, "count", "future")

    def probes(self, tokens: int) -> Tensor:
        """Evenly spaced."""
        return evenly_spaced(tokens, self.count)

    def score(self, glance: Glance) -> Tensor:
        """The mean over the query heads that share a KV head."""
        kv_heads, group, probes, dim = glance.queries.shape
        flat = glance.queries.flatten(0, 1).float()  # [heads, probes, dim]
        before = glance.turn(flat, -glance.sight.positions)
        mean = before.mean(1, keepdim=True)
        spread = (before - mean).mT @ (before - mean) / max(probes - 1, 1)
        positions = torch.arange(glance.tokens, glance.tokens + self.future)
        turned = torch.zeros(dim, dim, device=flat.device)
        for position in torch.split(positions, 64):
            # A row of the identity, turned, is a column of the rotation.
            rows = torch.eye(dim, device=flat.device).repeat(len(position), 1)[None]
            places = position.repeat_interleave(dim).to(flat.device)
            turned += glance.turn(rows, places)[0].view(len(position), dim, dim).sum(0)
        turned /= self.future
        mean = (mean @ turned).view(kv_heads, group, dim)
        spread = (turned.mT @ spread @ turned).view(kv_heads, group, dim, dim)
        keys = glance.keys[:, None, : glance.tokens].float()  # [kv_heads, 1, tokens, dim]
        logits = glance.scaling * (keys @ mean[..., None])[..., 0]
        logits = logits + glance.scaling**2 / 2 * ((keys @ spread) * keys).sum(-1)
        return torch.softmax(logits, dim=-1).mean(1)
