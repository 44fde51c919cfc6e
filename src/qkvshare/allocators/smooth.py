"""``smooth``: a step for every token, finer where later queries look, without tiers.

A token's step is ``salience ** -power`` times the card's, in half octaves: reverse
water-filling gives a token with more weight more bits, and a power well below 1/2 allows for
salience being a guess. The sinks get the finest.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

# Exponents are in quarters of an octave; a spread beyond two octaves would be trust in noise.
_SINKS, _LEAST, _MOST = -16, -8, 8


@dataclass(frozen=True)
class Smooth:
    """For codecs whose tokens have steps of their own."""

    power: float = 0.15

    name: ClassVar[str] = "smooth"
    uses_salience: ClassVar[bool] = True

    def exponents(self, salience: Tensor, sinks: int) -> npt.NDArray[np.int32]:
        """For one layer's ``salience [kv_heads, tokens]``: int32 ``[tokens]``."""
        mean = salience.mean(0)
        wanted = -2 * self.power * torch.log2((mean / mean.mean()).clamp(min=1e-9))
        halves = (wanted - wanted.mean()).round()
        exponents = (2 * halves).clamp(_LEAST, _MOST).int()
        exponents[:sinks] = _SINKS
        return exponents.cpu().numpy()
