"""Tokens whose early keys and values change most: CacheBlend (arXiv:2405.16444)."""

from __future__ import annotations

from dataclasses import dataclass

from ..composition import Composition
from .base import Repair


@dataclass(frozen=True)
class Deviation(Repair):
    """The first ``layers`` layers are computed for all tokens, the others for a ``share`` of them.

    The paper looks at the second layer, and recomputes 15 to 18 % of the tokens.
    """

    share: float = 0.15
    layers: int = 2

    def repair(self, composition: Composition) -> None:
        """The share whose keys and values have changed most."""
        changed = composition.changed
        found = composition.deviation(self.layers)
        most = found.topk(round(self.share * len(changed))).indices
        composition.compute(changed[most.sort().values])
