"""A card's own means: text of another kind lies beside what the profile predicts.

What prediction leaves has, by the profile, a mean of 0 in every column. In a text of a kind that
the profile has not seen it has another one, which the card tells and both sides add to the
profile's mean: a few bits a column, and nothing to do for a token.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from ..kernels import rans
from .entropy import Ints, Tables, width

PART = 8  # means are told in this part of the card's step
# Bits that a mean must seem to save to be told: many times what it takes, for the guess of what it
# saves is a fond one on text of the profile's own kind.
_WORTH = 24.0
# Bits saved by one square less: where a column is coarser than the step, as of a Gaussian;
# where it is finer and most numbers are 0, at the rate at which the step trades error for bits.
_SPREAD, _STEP = 2 * math.log(2), math.log(2) / 6


def choose(means: npt.NDArray[np.float32], tokens: float, classes: Ints) -> Ints:
    """Which of ``means [columns]``, in steps, found in so many ``tokens``, are worth telling.

    ``classes [columns]`` are the columns'. Returns whole numbers, in 1/8 step.
    """
    square = 2 * width(classes) ** 2  # of a Laplace distribution
    worth = tokens * means**2 > _WORTH * np.maximum(_SPREAD * square, _STEP)
    told = np.clip(np.rint(means * PART), -rans.LARGEST, rans.LARGEST)
    return np.where(worth & np.isfinite(told), told, 0).astype(np.int32)


def fitting_class(means: Ints, tables: Tables) -> tuple[int, Ints]:
    """The class whose distribution fits whole ``means`` best; what it has no symbol for is 0."""
    symbols = means + rans.LARGEST
    chosen = int(tables.bits[:, symbols].sum(1).argmin())
    return chosen, np.where(tables.freq[chosen, symbols] > 0, means, 0).astype(np.int32)
