"""Attention of few queries to many tokens on a processor.

The tokens of a head are taken in parts (FlashDecoding), each by whichever of torch's threads is
free, and the scores of a part are never all there (FlashAttention, arXiv:2205.14135). Torch's own
fused kernel gives whole heads to threads.
"""

from __future__ import annotations

from array import array
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .cpu_coded import Codes, work_coded
from .cpu_flash import PART, work
from .cpu_merge import kept_of
from .cpu_tiles import BLOCK
from .torch_threads import for_threads, on_all, parallel


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scaling: float,
    codes: Codes | None = None,
) -> Tensor | None:
    """``query [batch, heads, new, dim]``, ``key`` and ``value`` ``[batch, kv_heads, tokens, dim]``,
    ``mask [batch or 1, 1, new, tokens or more]``, added, or None; returns ``[batch, new, heads,
    dim]``. Queries and what is returned are float32, keys and values that or bfloat16.

    Tokens before ``key`` and ``value``, the same for all sequences, may be ``codes``; the mask is
    of both. The same bits for any number of threads. None for what there is no kernel for, or no
    threads: kernels read by address, so that every shape must be right. All of it is asked once,
    since with caches full of keys and values Python takes long.
    """
    if torch.compiler.is_compiling():
        return None
    shape, sizes = query.shape, key.shape
    queries, keys, values = query.stride(), key.stride(), value.stride()
    batch, heads, new, dim = shape
    of, kv_heads, tokens, wide = sizes
    if not (
        parallel() is not None
        and query.is_cpu
        and query.dtype == torch.float32
        and key.dtype == value.dtype
        and (key.dtype == torch.float32 or key.dtype == torch.bfloat16)
        and sizes == value.shape
        and batch == of
        and heads % kv_heads == 0
        and dim == wide
        and dim % BLOCK == 0
        and queries[3] == keys[3] == values[3] == 1
    ):
        return None
    if torch.is_grad_enabled() and any(at.requires_grad for at in (query, key, value)):
        return None
    group, parts, first, pieces, address = heads // kv_heads, -(-tokens // PART), 0, 0, 0
    if codes is not None:
        parts, first, pieces = parts + codes.parts, codes.tokens, len(codes.table)
        address = codes.table.ctypes.data
    masked = (0, 0, 0)
    if mask is not None:
        if not _reads(mask, query, first + tokens):
            return None
        masked = mask.data_ptr(), mask.stride(0) if len(mask) > 1 else 0, mask.stride(2)
    units = batch * kv_heads * parts
    out = torch.empty(batch, new, heads, dim)
    kept = torch.empty(units * kept_of(group * new, dim))
    order = array(
        "q",
        (
            *(0, 0, units, parts, kv_heads, group, new, tokens, dim),
            *(query.data_ptr(), *queries[:3], key.data_ptr(), *keys[:3]),
            *(value.data_ptr(), *values[:3], *masked, out.data_ptr(), kept.data_ptr()),
            *(_bits(scaling), first, pieces, address, key.element_size()),
        ),
    )
    on_all(_compiled(codes is not None), order.buffer_info()[0], units)
    return out


def _reads(mask: Tensor, query: Tensor, tokens: int) -> bool:
    batch, one, new, most = mask.shape
    return (
        mask.dtype == torch.float32
        and (batch == 1 or batch == query.shape[0])
        and one == 1
        and new == query.shape[2]
        and most >= tokens
        and mask.stride(3) == 1
    )


@cache
def _bits(number: float) -> int:
    return int(np.float32(number).view(np.int32))


@cache
def _compiled(coded: bool) -> Any:
    return for_threads(work_coded if coded else work)
