"""Everything is computed anew: equal to reading the text, and as dear."""

from __future__ import annotations

from dataclasses import dataclass

from ..composition import Composition
from .base import Repair


@dataclass(frozen=True)
class All(Repair):
    """The measure for all others."""

    def repair(self, composition: Composition) -> None:
        """All of them."""
        composition.compute(composition.changed)
