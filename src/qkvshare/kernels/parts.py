"""What kernels are told of the rows they decode or encode, on any device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy.typing as npt
from torch import Tensor

from .reference import eights

Array = Tensor | npt.NDArray[Any]


@dataclass(frozen=True)
class Part:
    """Rows of one layer's keys or values, all on one device: tensors, or arrays on a processor.

    Attributes:
        codes: uint8 ``[bytes]``.
        info: the rows' bytes, uint8 ``[heads · tokens]``.
        scales: float32 ``[32]``.
        numbers: ``[heads, tokens, dim]``: where to, for decoding, or float32 to be encoded.
        mean: float32 ``[heads, dim]``; None where nothing is added.
        angles: cosines and sines that turn pairs ``(i, i + dim / 2)``, float32
            ``[tokens, dim / 2]``; None where nothing is turned.
    """

    codes: Array
    info: Array
    scales: Array
    numbers: Tensor
    mean: Array | None = None
    angles: tuple[Tensor, Tensor] | None = None

    def row(self) -> list[int]:
        """Of the table that kernels read: addresses, then sizes.

        ``info, codes, scales, mean, numbers, cosines, sines`` (0 where there are none), ``rows,
        tokens``, numbers from the beginning of a head to that of the next, codes of a row.
        """
        heads, tokens, dim = self.numbers.shape
        assert self.numbers.stride()[1:] == (dim, 1)
        cos, sin = (0, 0) if self.angles is None else [at.data_ptr() for at in self.angles]
        mean = 0 if self.mean is None else _address(self.mean)
        return [
            *(_address(at) for at in (self.info, self.codes, self.scales)),
            *(mean, self.numbers.data_ptr(), cos, sin),
            *(heads * tokens, tokens, self.numbers.stride(0), eights(dim)),
        ]


def aligned(row: list[int]) -> int:
    """What the addresses and strides of a `Part.row` are multiples of: 16 lets many numbers move at
    once."""
    _, _, _, mean, numbers, cos, sin, _, _, apart, _ = row
    return 16 if (mean | numbers | cos | sin | apart) % 16 == 0 else 1


def _address(of: Array) -> int:
    if isinstance(of, Tensor):
        return of.data_ptr()
    address: int = of.__array_interface__["data"][0]
    return address
