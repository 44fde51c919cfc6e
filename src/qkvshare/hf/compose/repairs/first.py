"""The first tokens behind each seam: EPIC's LegoLink (arXiv:2410.15332).

A token alone, without anything before it, gets attention that it does not get behind other tokens.
So the first tokens of a part are those that a new prefix changes most.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..composition import Composition
from .base import Repair


@dataclass(frozen=True)
class First(Repair):
    """``count`` tokens of each part."""

    count: int = 4

    def repair(self, composition: Composition) -> None:
        """Those that come from cards, ``count`` of them behind each seam."""
        changed = composition.changed
        chosen = changed < 0
        for seam in composition.layout.seams:
            chosen |= (changed >= seam) & (changed < seam + self.count)
        composition.compute(changed[chosen])
