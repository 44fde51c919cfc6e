"""What kernels are told of the rows they decode or encode, on any device."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from .native import Array, Span, rows_span, span
from .reference import eights


@dataclass(frozen=True)
class Part:
    """Rows of one layer's keys or values, all on one device: tensors, or arrays on a processor.

    Attributes:
        codes: uint8 ``[bytes]``.
        info: the rows' bytes, uint8 ``[heads · tokens]``.
        scales: float32 ``[32]``.
        numbers: ``[heads, tokens, dim]``: where to, for decoding, or float32 to be encoded.
        mean: float32 ``[heads, dim]``; None where nothing is added.
        angles: cosines and sines that rotate pairs ``(i, i + dim / 2)``, float32
            ``[tokens, dim / 2]``; None where nothing is rotated.
    """

    codes: Array
    info: Array
    scales: Array
    numbers: Tensor
    mean: Array | None = None
    angles: tuple[Tensor, Tensor] | None = None

    def spans(self) -> list[Span]:
        """Of codes, bytes, scales, mean, cosines and sines."""
        arrays = self.codes, self.info, self.scales, self.mean, *(self.angles or (None, None))
        return [span(of) for of in arrays]

    def row(self) -> list[int]:
        """Of the table that kernels on a GPU read: addresses, then sizes.

        ``info, codes, scales, mean, numbers, cosines, sines`` (0 where there are none), ``rows,
        tokens``, numbers from the beginning of a head to that of the next, codes of a row.
        """
        heads, tokens, dim = self.numbers.shape
        codes, info, scales, mean, cos, sin = (int(address) for address, _ in self.spans())
        return [
            *(info, codes, scales, mean, rows_span(self.numbers)[0], cos, sin),
            *(heads * tokens, tokens, self.numbers.stride(0), eights(dim)),
        ]


def aligned(row: list[int]) -> int:
    """What the addresses and strides of a `Part.row` are multiples of: 16 lets many numbers move at
    once."""
    _, _, _, mean, numbers, cos, sin, _, _, apart, _ = row
    return 16 if (mean | numbers | cos | sin | apart) % 16 == 0 else 1
