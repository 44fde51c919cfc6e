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


@torch.library.custom_op("qkvshare::decode_rows", mutates_args=("out",))
def decode_rows(
    codes: Tensor, info: Tensor, scales: Tensor, mean: Tensor, out: Tensor, spare: int = 0
) -> None:
    """`reference.decode_rows` into ``out [heads, rows of a head + spare, dim]``, in its number
    format; the ``spare`` rows behind those of each head are left as they are."""
    rows = reference.decode_rows(codes, info, scales, mean, out.shape[2])
    out[:, : out.shape[1] - spare] = rows.view(len(mean), -1, out.shape[2])


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
    codes: Tensor, info: Tensor, scales: Tensor, mean: Tensor, out: Tensor, spare: int = 0
) -> None:
    dim, half = out.shape[2], out.dtype == torch.bfloat16
    if power_of_two(dim) > _LARGEST:
        rows = reference.decode_rows(codes, info, scales, mean, dim)
        out[:, : out.shape[1] - spare] = rows.view(len(mean), -1, dim)
        return
    from .cpu_decode import decode

    into = out if half or out.dtype == torch.float32 else torch.empty_like(out, dtype=torch.float32)
    # Sums of levels fit 16 bits up to 64 numbers.
    number = np.int16 if power_of_two(dim) <= 64 else np.int32
    opened = np.empty(9 * reference.BLOCK * dim, number)
    given = [_array(part) for part in (codes, info, scales)]
    flat = _array((into.view(torch.uint16) if half else into).view(-1))
    decode(*given, _matrix(dim), _array(mean), opened, half, spare, flat)
    if into is not out:
        out.copy_(into)


def _array(tensor: Tensor) -> Any:
    return tensor.contiguous().numpy()


def _matrix(dim: int) -> Any:
    return dct(dim // power_of_two(dim))
