"""The row kernels' operators on a GPU, in Triton: the same bits as the reference.

Without Triton (torch brings it on Linux) the reference itself runs there: the same numbers, later.
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec

from torch import Tensor

from . import reference
from .rotation import power_of_two

# A unit of 2 numbers is the least that kernels take, 128 the most: see `cuda_decode`.
_SMALLEST, _LARGEST = 4, 256


@cache
def has_triton() -> bool:
    """Whether Triton is installed; it is imported only when a kernel is first used."""
    return find_spec("triton") is not None


def fits(dim: int) -> bool:
    """Whether there are kernels for rows of ``dim`` numbers here."""
    return has_triton() and _SMALLEST <= power_of_two(dim) <= _LARGEST


def encode(rows: Tensor, info: Tensor, scales: Tensor, nbytes: int) -> Tensor:
    """`reference.encode_rows`; ``nbytes`` is the size of what comes out."""
    if not fits(rows.shape[1]):
        return reference.encode_rows(rows, info, scales)
    from .cuda_encode import encode_part
    from .parts import Part

    numbers = rows.contiguous()[None]
    return encode_part(Part(info, info.contiguous(), scales.contiguous(), numbers), nbytes)


def decode(codes: Tensor, info: Tensor, scales: Tensor, mean: Tensor, out: Tensor) -> None:
    """`reference.decode_rows` into ``out [heads, rows of a head, dim]``, in its number format."""
    if not fits(out.shape[2]):
        numbers = reference.decode_rows(codes, info, scales, mean, out.shape[2])
        out.copy_(numbers.view(out.shape))
        return
    from .cuda_decode import decode_parts
    from .parts import Part

    codes, info, scales, mean = (at.contiguous() for at in (codes, info, scales, mean))
    decode_parts([Part(codes, info, scales, out, mean)])
