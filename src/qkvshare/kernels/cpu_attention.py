"""Attention of few queries to many tokens on a processor.

The tokens of a head are taken in parts (FlashDecoding), each by whichever of torch's threads is
free, and the scores of a part are never all there (FlashAttention, arXiv:2205.14135). Torch's own
fused kernel gives whole heads to threads.
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

import numpy as np
import torch
from numba import types
from torch import Tensor

from .compiling import callback
from .cpu_coded import Codes, work_coded
from .cpu_flash import PART, kept_of, work
from .cpu_tiles import BLOCK


def attends(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, coded: int = 0) -> bool:
    """Whether `attend` takes these, after as many ``coded`` tokens, and there are threads to be
    had: kernels read by address, so that every shape must be right."""
    learns = torch.is_grad_enabled() and any(at.requires_grad for at in (query, key, value))
    return (
        query.device.type == "cpu"
        and query.dtype == key.dtype == value.dtype == torch.float32
        and key.shape == value.shape
        and len(query) == len(key)
        and query.shape[1] % key.shape[1] == 0
        and query.shape[3] == key.shape[3]
        and key.shape[3] % BLOCK == 0
        and query.stride(3) == key.stride(3) == value.stride(3) == 1
        and (mask is None or _reads(mask, query, coded + key.shape[2]))
        and not learns
        and not torch.compiler.is_compiling()
        and _threads() is not None
    )


def _reads(mask: Tensor, query: Tensor, tokens: int) -> bool:
    sizes = [(each, 1, query.shape[2], tokens) for each in (1, len(query))]
    return mask.dtype == torch.float32 and mask.shape in sizes and mask.stride(3) == 1


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scaling: float,
    codes: Codes | None = None,
) -> Tensor:
    """``query [batch, heads, new, dim]``, ``key`` and ``value`` ``[batch, kv_heads, tokens, dim]``,
    ``mask [batch or 1, 1, new, tokens]``, added, or None; returns ``[batch, new, heads, dim]``.

    Tokens before ``key`` and ``value``, the same for all sequences, may be ``codes``; the mask is
    of both. The same bits for any number of threads.
    """
    batch, heads, new, dim = query.shape
    kv_heads, tokens = key.shape[1:3]
    group, parts, first, pieces, address = heads // kv_heads, -(-tokens // PART), 0, 0, 0
    if codes is not None:
        parts, first, pieces = parts + codes.parts, codes.tokens, len(codes.table)
        address = codes.table.ctypes.data
    units = batch * kv_heads * parts
    out = torch.empty(batch, new, heads, dim)
    kept = torch.empty(units * kept_of(group * new, dim))
    masked = (0, 0, 0)
    if mask is not None:
        masked = mask.data_ptr(), mask.stride(0) if len(mask) > 1 else 0, mask.stride(2)
    order = np.array(
        [
            *(0, 0, units, parts, kv_heads, group, new, tokens, dim),
            *(query.data_ptr(), *query.stride()[:3], key.data_ptr(), *key.stride()[:3]),
            *(value.data_ptr(), *value.stride()[:3], *masked, out.data_ptr(), kept.data_ptr()),
            *(int(np.float32(scaling).view(np.int32)), first, pieces, address),
        ],
        np.int64,
    )
    threads, function = min(units, torch.get_num_threads()), _compiled(codes is not None)
    if threads == 1:
        function(order.ctypes.data)
    else:
        _threads()(function, order.ctypes.data, threads, 0)
    return out


@cache
def _threads() -> Any:
    """GNU's OpenMP, whose threads torch has; None where it has others."""
    try:
        parallel = ctypes.CDLL(None).GOMP_parallel
    except (AttributeError, OSError, TypeError):
        return None
    pointer, number = ctypes.c_void_p, ctypes.c_uint
    parallel.argtypes, parallel.restype = [pointer, pointer, number, number], None
    return parallel


@cache
def _compiled(coded: bool) -> Any:
    made = callback(work_coded if coded else work, types.void(types.voidptr))
    function: Any = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(made.address)
    function.made = made  # it owns the code
    return function
