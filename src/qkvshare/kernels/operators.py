"""The row kernels as operators of torch: on a processor Numba, elsewhere the reference.

See `reference` for what they do; they check nothing, callers do.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import reference
from .rotation import dct, power_of_two

# Hadamard transforms of more numbers are left to the reference: no model has such heads.
_LARGEST = 256


@torch.library.custom_op("qkvshare::encode_rows", mutates_args=())
def encode_rows(rows: Tensor, info: Tensor, scales: Tensor, nbytes: int) -> Tensor:
    """`reference.encode_rows`; ``nbytes`` is the size of what comes out."""
    out = reference.encode_rows(rows, info, scales)
    assert len(out) == nbytes
    return out


@torch.library.custom_op("qkvshare::decode_rows", mutates_args=())
def decode_rows(
    codes: Tensor, info: Tensor, scales: Tensor, mean: Tensor, dim: int, dtype: torch.dtype
) -> Tensor:
    """`reference.decode_rows`, rounded to ``dtype``."""
    return reference.decode_rows(codes, info, scales, mean, dim).to(dtype)


@encode_rows.register_kernel("cpu")
def _(rows: Tensor, info: Tensor, scales: Tensor, nbytes: int) -> Tensor:
    if power_of_two(rows.shape[1]) > _LARGEST:
        return reference.encode_rows(rows, info, scales)
    from .cpu_encode import encode

    out = torch.empty(nbytes, dtype=torch.uint8)
    encode(_array(rows), _array(info), _array(scales), _matrix(rows.shape[1]), _array(out))
    return out


@decode_rows.register_kernel("cpu")
def _(
    codes: Tensor, info: Tensor, scales: Tensor, mean: Tensor, dim: int, dtype: torch.dtype
) -> Tensor:
    if power_of_two(dim) > _LARGEST:
        return reference.decode_rows(codes, info, scales, mean, dim).to(dtype)
    from .cpu_decode import decode

    half = dtype == torch.bfloat16
    out = torch.empty(len(info), dim, dtype=dtype if half else torch.float32)
    # Sums of levels fit 16 bits up to 64 numbers.
    number = np.int16 if power_of_two(dim) <= 64 else np.int32
    opened = np.empty(9 * reference.BLOCK * dim, number)
    given = [_array(part) for part in (codes, info, scales)]
    flat = _array((out.view(torch.uint16) if half else out).view(-1))
    decode(*given, _matrix(dim), _array(mean), opened, half, flat)
    return out.to(dtype)


def _array(tensor: Tensor) -> Any:
    return tensor.contiguous().numpy()


def _matrix(dim: int) -> Any:
    return dct(dim // power_of_two(dim))
