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
def decode_rows(codes: Tensor, info: Tensor, scales: Tensor, mean: Tensor, out: Tensor) -> None:
    """`reference.decode_rows` into ``out [heads, rows of a head, dim]``, in its number format.

    A head's rows lie one behind the other; heads may be any number of rows apart.
    """
    out.copy_(reference.decode_rows(codes, info, scales, mean, out.shape[2]).view(out.shape))


@encode_rows.register_kernel("cpu")
def _(rows: Tensor, info: Tensor, scales: Tensor, nbytes: int) -> Tensor:
    if power_of_two(rows.shape[1]) > _LARGEST:
        return reference.encode_rows(rows, info, scales)
    from .cpu_encode import encode

    out = torch.empty(nbytes, dtype=torch.uint8)
    encode(_array(rows), _array(info), _array(scales), _matrix(rows.shape[1]), _array(out))
    return out


@decode_rows.register_kernel("cpu")
def _(codes: Tensor, info: Tensor, scales: Tensor, mean: Tensor, out: Tensor) -> None:
    (heads, tokens, dim), half = out.shape, out.dtype == torch.bfloat16
    if power_of_two(dim) > _LARGEST or tokens == 0:
        out.copy_(reference.decode_rows(codes, info, scales, mean, dim).view(out.shape))
        return
    from .cpu_decode import decode

    exact = half or out.dtype == torch.float32
    into = out if exact else torch.empty(out.shape, dtype=torch.float32)
    assert into.stride()[1:] == (dim, 1)
    apart = into.stride(0) // dim if heads > 1 else tokens
    whole = into.as_strided((((heads - 1) * apart + tokens) * dim,), (1,))
    # Sums of levels fit 16 bits up to 64 numbers.
    number = np.int16 if power_of_two(dim) <= 64 else np.int32
    opened = np.empty(9 * reference.BLOCK * dim, number)
    given = [_array(part) for part in (codes, info, scales)]
    flat = _array(whole.view(torch.uint16) if half else whole)
    decode(*given, _matrix(dim), _array(mean), opened, half, apart - tokens, flat)
    if into is not out:
        out.copy_(into)


def _array(tensor: Tensor) -> Any:
    return tensor.contiguous().numpy()


def _matrix(dim: int) -> Any:
    return dct(dim // power_of_two(dim))
