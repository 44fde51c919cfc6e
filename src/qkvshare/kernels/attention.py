"""Attention of few queries to many tokens on a processor, see ``csrc/attention.cpp``.

The tokens of a head are taken in parts (FlashDecoding), each by whichever of torch's threads is
free, and the scores of a part are never all there (FlashAttention, arXiv:2205.14135). Torch's own
fused kernel gives whole heads to threads. Of tokens that are still codes, a block at a time is
decoded into a cache of the processor, and what is read from memory are codes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Self

import torch
from torch import Tensor

from .native import native
from .parts import Part

DIMS = (64, 128, 256)  # of heads whose codes are read
_TILE = 64  # heads of numbers have a multiple of it


@dataclass(frozen=True, eq=False)
class Piece:
    """Keys and values of some tokens as codes, never changed.

    Attributes:
        tokens: how many.
        native: their addresses, of what is held.
    """

    tokens: int
    native: Any
    held: tuple[Part, ...]

    @classmethod
    def of(cls, parts: Sequence[Part]) -> Self | None:
        """Of both; None where there are no kernels for them."""
        heads, tokens, dim = parts[0].numbers.shape
        if native is None or dim not in DIMS or parts[1].numbers.shape != parts[0].numbers.shape:
            return None
        rows = [one.spans() for one in parts]
        return cls(tokens, native.Piece(heads, tokens, dim, *rows), tuple(parts))

    def __deepcopy__(self, _: object) -> Self:
        """Its addresses would be those of the original."""
        return self


# Pieces that follow each other from token 0 on, and how many tokens of each count.
Codes = tuple[tuple[Piece, int], ...]


def first_codes(pieces: Sequence[Piece], tokens: int) -> Codes:
    """The first ``tokens`` of ``pieces``."""
    ends = accumulate((piece.tokens for piece in pieces), initial=0)
    return tuple(
        (piece, max(0, min(piece.tokens, tokens - first)))
        for piece, first in zip(pieces, ends, strict=False)
    )


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scaling: float,
    codes: Codes = (),
) -> Tensor | None:
    """``query [batch, heads, new, dim]``, ``key`` and ``value`` ``[batch, kv_heads, tokens, dim]``,
    ``mask [batch or 1, 1, new, tokens or more]``, added, or None; returns ``[batch, new, heads,
    dim]``. Queries and what is returned are float32, keys and values that or bfloat16.

    Tokens before ``key`` and ``value``, the same for all sequences, may be ``codes``; the mask is
    of both. The same bits for any number of threads. None for what there is no kernel for.
    """
    if native is None or torch.compiler.is_compiling():
        return None
    batch, heads, new, dim = query.shape
    of, kv_heads, tokens, wide = key.shape
    if not (
        query.is_cpu
        and query.dtype == torch.float32
        and key.dtype == value.dtype
        and (key.dtype == torch.float32 or key.dtype == torch.bfloat16)
        and key.shape == value.shape
        and batch == of
        and heads % kv_heads == 0
        and dim == wide
        and dim % _TILE == 0
        and query.stride(3) == key.stride(3) == value.stride(3) == 1
    ):
        return None
    if torch.is_grad_enabled() and any(at.requires_grad for at in (query, key, value)):
        return None
    first = sum(used for _, used in codes)
    if mask is not None and not _reads(mask, query, first + tokens):
        return None
    out = torch.empty(batch, new, heads, dim)
    native.attend(
        (batch, kv_heads, heads // kv_heads, new, tokens, dim),
        *map(_numbers, (query, key, value)),
        (0,) * 5 if mask is None else _numbers(mask.expand(batch, -1, -1, -1)),
        _numbers(out),
        scaling,
        key.dtype == torch.bfloat16,
        [(piece.native, used) for piece, used in codes],
        torch.get_num_threads(),
    )
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


def _numbers(of: Tensor) -> tuple[int, ...]:
    """Where they are, how many the memory has from there on, and steps but for the last."""
    there = of.untyped_storage().nbytes() // of.element_size() - of.storage_offset()
    return of.data_ptr(), int(there), *map(int, of.stride()[:3])
