"""Nothing is repaired: keys are moved to their positions, and that is all."""

from __future__ import annotations

from dataclasses import dataclass

from ..composition import Composition
from .base import Repair


@dataclass(frozen=True)
class Nothing(Repair):
    """What has no cost but decoding."""

    def repair(self, composition: Composition) -> None:
        """Read the text."""
        composition.read()
