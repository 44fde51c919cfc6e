"""``key-norm``: keys of small norm are looked at most (arXiv:2406.11430)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from .base import Glance, Scorer


@dataclass(frozen=True)
class KeyNorm(Scorer):
    """The inverse of the key's norm; asks no query."""

    name = "key-norm"

    def score(self, glance: Glance) -> Tensor:
        """Norms of the context's keys only."""
        norms = glance.keys[:, : glance.tokens].float().norm(dim=-1)
        inverse: Tensor = norms.clamp(min=1e-6).reciprocal()
        return inverse
