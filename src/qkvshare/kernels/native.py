"""The C++ kernels of ``csrc/``, where this installation has them.

They get addresses and sizes, and check that these fit each other before they write anything.
"""

from __future__ import annotations

import warnings
from functools import cache
from importlib import import_module
from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor

from .rotation import dct, power_of_two

Array = Tensor | npt.NDArray[Any]
# What kernels take for memory: an address and its bytes, or an array.
Span = tuple[int, int] | npt.NDArray[Any]
LARGEST = 256  # numbers of a Hadamard transform; no model has larger heads

native: Any = None
try:
    native = import_module("._native", __package__)
except ImportError as error:
    warnings.warn(
        f"QKVShare has no compiled kernels here ({error}). Plain torch does their work: the same "
        "numbers, many times slower. Install a C++20 compiler (GCC or Clang), then QKVShare again "
        "with `pip install --force-reinstall --no-deps --no-cache-dir`.",
        stacklevel=2,
    )


def fits(dim: int) -> bool:
    """Whether there are kernels here for rows of ``dim`` numbers on a processor."""
    return native is not None and power_of_two(dim) <= LARGEST


def span(of: Array | None) -> Span:
    """Where the memory of a contiguous array is, and its bytes; zeros of None."""
    if of is None:
        return 0, 0
    if not isinstance(of, Tensor):
        return of
    assert of.is_contiguous()
    return of.data_ptr(), of.nbytes


def rows_span(of: Tensor) -> tuple[int, int]:
    """The same of ``[heads, tokens, dim]`` whose heads lie apart."""
    heads, tokens, dim = of.shape
    assert of.stride()[1:] == (dim, 1)
    reach = (heads - 1) * of.stride(0) + tokens * dim if of.numel() else 0
    return of.data_ptr(), reach * of.element_size()


@cache
def dct_span(dim: int) -> Span:
    """The DCT over the odd factor of ``dim``, which is kept."""
    return span(dct(dim // power_of_two(dim)))


def numbers_of(of: Tensor, angles: tuple[Tensor, Tensor] | None) -> tuple[Any, ...]:
    """What kernels are told of numbers ``[heads, tokens, dim]``, float32 or bfloat16, whose heads
    lie apart, and of the angles that rotate them."""
    heads, tokens, dim = of.shape
    cos, sin = angles or (None, None)
    return (
        *(rows_span(of), of.dtype == torch.bfloat16, heads, tokens, of.stride(0), dim),
        *(span(cos), span(sin), dct_span(dim)),
    )
