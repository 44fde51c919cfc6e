"""``a+b``: the mean of several scorers, each scaled to the same mean first."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from .base import Glance, Scorer


@dataclass(frozen=True)
class Mixture(Scorer):
    """Of ``parts``, asked one by one: each has probes of its own."""

    parts: tuple[Scorer, ...]

    name = "mixture"

    def score(self, glance: Glance) -> Tensor:
        """Not asked as a whole."""
        raise NotImplementedError
