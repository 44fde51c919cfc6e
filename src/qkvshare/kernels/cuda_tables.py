"""Constants that the Triton kernels read, on the GPU once they were asked for."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from torch import Tensor

from .levels import TIERS, levels, thresholds
from .rotation import dct, power_of_two


@cache
def levels_on(device: torch.device) -> Tensor:
    """Levels by tier, float16 ``[8, 256]``: whole numbers up to 1020, so exact, as are sums of two.

    A gather from a row of a few bytes is cheaper than the arithmetic of `levels`.
    """
    table = np.zeros((8, 256), np.float16)
    for tier, bits in enumerate(TIERS):
        if bits:
            table[tier, : 2**bits] = levels(bits)
    return torch.from_numpy(table).to(device)


@cache
def thresholds_on(device: torch.device) -> Tensor:
    """Thresholds by tier, float32 ``[8, 256]``."""
    table = np.zeros((8, 256), np.float32)
    for tier, bits in enumerate(TIERS):
        if bits:
            table[tier, : 2**bits - 1] = thresholds(bits)
    return torch.from_numpy(table).to(device)


@cache
def dct_on(device: torch.device, dim: int) -> Tensor:
    """The DCT over the odd factor of ``dim``."""
    return torch.from_numpy(dct(dim // power_of_two(dim))).to(device)
