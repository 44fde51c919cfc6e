"""The row kernels as operators of torch: on a processor Numba, on a GPU Triton, else the reference.

See `reference` for what they do; they check nothing, callers do. They are defined the short way,
since a call must cost little beside a small layer, and one of a ``custom_op`` does not.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import reference
from .parts import Part
from .rotation import dct, power_of_two

# Hadamard transforms of more numbers are left to the reference: no model has such heads.
LARGEST = 256

_library: Any = torch.library.Library("qkvshare", "DEF")  # type: ignore[no-untyped-call]
_library.define("encode_rows(Tensor rows, Tensor info, Tensor scales, SymInt nbytes) -> Tensor")
_library.define(
    "decode_rows(Tensor codes, Tensor info, Tensor scales, Tensor mean, Tensor(a!) out) -> ()"
)


def encode_rows(rows: Tensor, info: Tensor, scales: Tensor, nbytes: int) -> Tensor:
    """`reference.encode_rows`; ``nbytes`` is the size of what comes out."""
    out: Tensor = torch.ops.qkvshare.encode_rows.default(rows, info, scales, nbytes)
    return out


def decode_rows(codes: Tensor, info: Tensor, scales: Tensor, mean: Tensor, out: Tensor) -> None:
    """`reference.decode_rows` into ``out [heads, rows of a head, dim]``, in its number format.

    A head's rows lie one behind the other; heads may be any number of rows apart.
    """
    torch.ops.qkvshare.decode_rows.default(codes, info, scales, mean, out)


def _encode_anywhere(rows: Tensor, info: Tensor, scales: Tensor, nbytes: int) -> Tensor:
    out = reference.encode_rows(rows, info, scales)
    assert len(out) == nbytes
    return out


def _decode_anywhere(
    codes: Tensor, info: Tensor, scales: Tensor, mean: Tensor, out: Tensor
) -> None:
    out.copy_(reference.decode_rows(codes, info, scales, mean, out.shape[2]).view(out.shape))


def _encode_on_cpu(rows: Tensor, info: Tensor, scales: Tensor, nbytes: int) -> Tensor:
    if power_of_two(rows.shape[1]) > LARGEST:
        return _encode_anywhere(rows, info, scales, nbytes)
    from .cpu_encode import encode

    out = torch.empty(nbytes, dtype=torch.uint8)
    encode(_array(rows), _array(info), _array(scales), _matrix(rows.shape[1]), _array(out))
    return out


def _decode_on_cpu(codes: Tensor, info: Tensor, scales: Tensor, mean: Tensor, out: Tensor) -> None:
    from .cpu_decode import decode_parts

    codes, info, scales, mean = (at.contiguous() for at in (codes, info, scales, mean))
    decode_parts([Part(codes, info, scales, out, mean)])


def _encode_on_cuda(rows: Tensor, info: Tensor, scales: Tensor, nbytes: int) -> Tensor:
    from .cuda import encode

    return encode(rows, info, scales, nbytes)


def _decode_on_cuda(codes: Tensor, info: Tensor, scales: Tensor, mean: Tensor, out: Tensor) -> None:
    from .cuda import decode

    decode(codes, info, scales, mean, out)


def _array(tensor: Tensor) -> Any:
    return tensor.detach().contiguous().numpy()


def _matrix(dim: int) -> Any:
    return dct(dim // power_of_two(dim))


_library.impl("encode_rows", _encode_on_cpu, "CPU")
_library.impl("decode_rows", _decode_on_cpu, "CPU")
_library.impl("encode_rows", _encode_on_cuda, "CUDA")
_library.impl("decode_rows", _decode_on_cuda, "CUDA")
_library.impl("encode_rows", _encode_anywhere, "CompositeExplicitAutograd")
_library.impl("decode_rows", _decode_anywhere, "CompositeExplicitAutograd")
