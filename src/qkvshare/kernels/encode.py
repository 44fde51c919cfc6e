"""Rows from where a cache has them to their codes, on a processor: the bits of the reference.

Keys are rotated back and their mean is taken away on the way, so that nothing is copied but the
rows of the part at work. All parts of several layers go into one call: what a small layer costs is
mostly calls. Formats and formulas: ``csrc/encode_simd.cpp``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from .native import native, numbers_of, span


@dataclass(frozen=True)
class Source:
    """Rows of one layer's keys or values, and where what is made of them goes.

    Attributes:
        numbers: ``[heads, tokens, dim]``, float32 or bfloat16; a head's rows lie one behind the
            other.
        angles: cosines and sines that rotate pairs ``(i, i + dim / 2)``, float32
            ``[tokens, dim / 2]``; None where nothing is rotated.
        mean: uint8 ``[heads · (4 + dim)]``, to which the mean over the tokens goes, which is taken
            away: of each head a step, float32, then of all int8 codes. None where it stays.
        out: to measure, float32 ``[heads · tokens]`` for mean squares; to encode, uint8 for an
            exponent of two bytes, a byte a row, and codes.
        widths: to encode, uint8 ``[heads, tokens]``.
    """

    numbers: Tensor
    angles: tuple[Tensor, Tensor] | None
    mean: npt.NDArray[np.uint8] | None
    out: npt.NDArray[Any]
    widths: Tensor | None = None

    def row(self) -> tuple[Any, ...]:
        """What kernels are told."""
        numbers = numbers_of(self.numbers, self.angles)
        return numbers, span(self.mean), span(self.widths), span(self.out)


def measure(sources: Sequence[Source], threads: int = 1) -> None:
    """Mean squares of all rows, of keys without their mean."""
    native.measure([one.row() for one in sources], threads)


def encode(sources: Sequence[Source], threads: int = 1) -> None:
    """Everything that ``packed`` writes of the rows."""
    native.encode([one.row() for one in sources], threads)
