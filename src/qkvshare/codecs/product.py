"""Products of matrices that have the same bits with any number of threads.

Where rows are few, torch's libraries divide the sum behind each number among threads, unless it is
short. So sums are made `SHORT` terms at a time.

Predictions are sums of bfloat16 products: processors with instructions for them (AMX, AVX512-BF16)
take a quarter of the time that float32 takes. Others multiply the same numbers as float32, which
has room for each product, so that only the order of sums differs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any

import torch
from torch import Tensor

from ..kernels.native import native as kernels

SHORT = 192


def add(out: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """``out += a · b``, float32; returns ``out``."""
    for left, right in _short(a, b):
        out.addmm_(left, right)
    return out


def summed(pairs: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
    """``Σ a · b``, float32, of ``a [rows, n]`` and ``b [n, columns]``, all bfloat16 and at least
    one pair; rounded to bfloat16 after every `SHORT` terms of each."""
    out = None
    for a, b in pairs:
        for left, right in _short(a, b):
            if native():
                out = left @ right if out is None else out.addmm_(left, right)
            else:
                more = left.float() @ right.float()
                out = (more if out is None else more.add_(out)).bfloat16()
    assert out is not None
    return out.float()


@cache
def native() -> bool:
    """Whether this processor multiplies bfloat16."""
    library: Any = torch.backends.mkldnn
    return kernels is not None and kernels.multiplies_bfloat16 and bool(library.is_available())


def _short(a: Tensor, b: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    return zip(torch.split(a, SHORT, 1), torch.split(b, SHORT), strict=True)
