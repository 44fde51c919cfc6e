"""Numbers that a card may stand for: finite, and not so large that a model's own sums overflow.

A card comes from somebody else. One number that is none makes all that a model says after it
meaningless, and nothing says so. Codecs look at scales where these say enough, and at the numbers
where they do not.
"""

from __future__ import annotations

from functools import cache

import numpy as np
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
    if numbers.numel() and not _largest(numbers) <= most(dtype):  # nor where it is no number
        raise not_finite(codec, dtype)


def not_finite(codec: str, dtype: torch.dtype) -> CardFormatError:
    """For numbers that are none, infinite or too large."""
    return CardFormatError(
        f"a layer encoded by {codec!r} stands for numbers that are not finite, or beyond "
        f"{most(dtype):g}, the most that {str(dtype).removeprefix('torch.')} may have here. "
        "The card is damaged or was assembled by hand; get it again from who made it."
    )


def _largest(numbers: Tensor) -> float:
    """The largest magnitude; NaN or infinite where one is."""
    if not numbers.is_contiguous() or numbers.device.type != "cpu":
        return float(numbers.abs().max())
    # Magnitudes are in the order of their bits, and processors compare whole numbers fastest.
    bits = numbers.detach().flatten().view(torch.uint8).numpy()
    sign, size = 1 << (8 * numbers.itemsize - 1), numbers.itemsize
    above, below = int(bits.view(f"<i{size}").max()), int(bits.view(f"<u{size}").max()) - sign
    found = np.array(max(above, below), f"<u{size}")
    return float(torch.from_numpy(found[None].view(np.uint8)).view(numbers.dtype))
