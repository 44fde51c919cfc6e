"""``lagrangian``: least weighted distortion under the budget, over every row at once.

A row's worth is ``energy · (floor + share · salience) · weight``. The floor is for the facts that
nobody has asked about yet: such a row still counts by what its loss would distort. Salience adds
bits for the few rows that every query looks at. Energy and salience are taken relative to their
mean over the layer, keys and values apart.

The weight is one for each head's keys and one for its values: what their typical error would do to
the model's predictions, ``(Fisher information · mean energy of the layer) ** sensitivity``. A power
of 1 would be right for small errors; at a few bits they are not small, and the heads with little
Fisher information would be left without bits.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..codecs.bits import BitMap
from .base import Allocator, Demand, Ladder


@dataclass(frozen=True)
class Lagrangian(Allocator):
    """The parameters of ``worth``; a ``sensitivity`` of 0 weighs all heads alike."""

    share: float = 1.0
    floor: float = 0.1
    sensitivity: float = 0.5

    name = "lagrangian"
    uses_salience = True

    @property
    def uses_sensitivity(self) -> bool:
        """The model is not measured for nothing."""
        return self.sensitivity != 0

    def allocate(self, demand: Demand, budget: int) -> BitMap:
        """Raises `BudgetError`."""
        ladder = self.ladder(demand)
        return ladder.fill(budget, ladder.slope(budget))

    def ladder(self, demand: Demand) -> Ladder:
        """Worth is relative to what else there is, so a slope means the same in every segment."""
        assert demand.salience is not None
        worth = []
        for number, (energy, salience) in enumerate(
            zip(demand.energy, demand.salience, strict=True)
        ):
            both = torch.stack([energy.keys, energy.values])  # [2, kv_heads, tokens]
            mean = both.mean((1, 2), keepdim=True).clamp(min=1e-30)
            worth.append(both / mean * (self.floor + self.share * salience.to(both.device)))
            if demand.sensitivity is not None:
                fisher = demand.sensitivity[number].to(both.device)[:, :, None]
                worth[-1] *= (fisher * mean) ** self.sensitivity
        return Ladder(demand, worth, demand.codec.distortion)
