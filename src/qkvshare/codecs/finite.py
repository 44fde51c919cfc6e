"""Numbers that a card may stand for: finite, and not so large that a model's own sums overflow.

A card comes from somebody else. One number that is none makes all that a model says after it
meaningless, and nothing says so. Codecs look at scales where these say enough, and at the numbers
where they do not.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from ..card.errors import CardFormatError

# Models have keys and values of some thousands. Squares of these, summed, are finite in float32.
MOST = 2.0**40


@cache
def most(dtype: torch.dtype) -> float:
    """The largest magnitude of a number in ``dtype``."""
    return min(MOST, torch.finfo(dtype).max)


def require_finite(numbers: Tensor, dtype: torch.dtype, codec: str) -> None:
    """Raise `CardFormatError` unless ``numbers``, of any shape, can all be given in ``dtype``."""
    if numbers.numel():
        least, largest = map(float, torch.aminmax(numbers))
        if not -most(dtype) <= least <= largest <= most(dtype):  # nor where they are no numbers
            raise not_finite(codec, dtype)


def not_finite(codec: str, dtype: torch.dtype) -> CardFormatError:
    """For numbers that are none, infinite or too large."""
    return CardFormatError(
        f"a layer encoded by {codec!r} stands for numbers that are not finite, or beyond "
        f"{most(dtype):g}, the most that {str(dtype).removeprefix('torch.')} may have here. "
        "The card is damaged or was assembled by hand; get it again from who made it."
    )
