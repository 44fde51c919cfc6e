"""The C++ kernels of ``csrc/``, where this installation has them."""

from __future__ import annotations

import warnings
from typing import Any

import numpy.typing as npt
from torch import Tensor

Array = Tensor | npt.NDArray[Any]

native: Any = None
try:
    from . import _native as native
except ImportError as error:
    warnings.warn(
        f"QKVShare has no compiled kernels ({error}): cards are encoded and decoded by plain torch, "
        "with the same numbers, many times slower. Install a C++20 compiler, then QKVShare again.",
        stacklevel=2,
    )


def span(of: Array | None) -> tuple[int, int]:
    """Where the memory of a contiguous array is, and how many bytes it has; zeros of None."""
    if of is None:
        return 0, 0
    if isinstance(of, Tensor):
        assert of.is_contiguous()
        return of.data_ptr(), of.nbytes
    assert of.flags.c_contiguous
    return of.__array_interface__["data"][0], of.nbytes
