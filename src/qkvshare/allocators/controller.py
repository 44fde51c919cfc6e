"""``controller``: a small network reads the width off four signals of a token.

After "Don't Waste Bits!" (arXiv:2604.04722): entropy, confidence, rarity and attention variance go
into an MLP 4 → 128 → 128 → 4 over widths of 2, 4, 8 and 16 bits. Its average rate is fixed in
training; to meet any budget at equal bytes, here the expected width of a token is moved up or down
by the same number of bits for all. It is trained by `qkvshare calibrate`.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..codecs.bits import BitMap
from .base import Demand
from .learned import Learned, expected_width

WIDTHS = (2, 4, 8, 16)
SIZES = (128, 128)


@dataclass(frozen=True)
class Controller(Learned):
    """No parameters but the profile."""

    name = "controller"

    def allocate(self, demand: Demand, budget: int) -> BitMap:
        """Raises `BudgetError`, and `ProfileError` without a profile for it."""
        assert demand.features is not None
        chances = self.classify(demand.features.signals, len(WIDTHS))
        return self.in_order(demand, budget, expected_width(chances, WIDTHS))
