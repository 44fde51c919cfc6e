"""Decode rows on a processor: the same bits as the reference, keys rotated on the way.

All parts of several layers go into one call: what a small layer costs is mostly calls. Formats and
formulas: ``csrc/decode_simd.cpp``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import reference
from .levels import TIERS
from .native import Array, dct_span, fits, native, rows_span, span
from .parts import Part
from .rotation import rotate_pairs

FORMATS = (torch.float32, torch.bfloat16)


def decode_parts(parts: Sequence[Part]) -> None:
    """`reference.decode_rows` of each part into its ``numbers``, keys rotated.

    Raises `ValueError` where a part's arrays do not fit each other; nothing is written then.
    """
    alike: dict[tuple[int, torch.dtype], list[Part]] = {}
    for one in parts:
        if one.numbers.numel():
            alike.setdefault((one.numbers.shape[2], one.numbers.dtype), []).append(one)
    for (dim, dtype), some in alike.items():
        if not fits(dim):
            for one in some:
                one.numbers.copy_(_decoded(one))
        elif dtype in FORMATS:
            _decode(dim, dtype, some)
        else:
            wide = [replace(one, numbers=torch.empty(one.numbers.shape)) for one in some]
            _decode(dim, torch.float32, wide)
            for one, found in zip(some, wide, strict=True):
                one.numbers.copy_(found.numbers)


def line_of(dim: int, dtype: torch.dtype, capacity: int) -> Any:
    """A line of parts that threads can share, see ``csrc/decode.cpp``."""
    return native.Line(dim, dtype == torch.bfloat16, dct_span(dim), capacity)


def add(line: Any, part: Part) -> None:
    """The line keeps the part until it is decoded."""
    heads, tokens, _ = part.numbers.shape
    numbers = rows_span(part.numbers)
    line.add(*part.spans(), numbers, heads, tokens, part.numbers.stride(0), part)


def widths(info: Array) -> int:
    """The sum of the rows' widths, in bits a number; ``info`` uint8 ``[rows]``."""
    if native is not None:
        return int(native.widths(span(info)))
    return int(np.bincount(np.asarray(info) & 7, minlength=8) @ TIERS)


def _decode(dim: int, dtype: torch.dtype, parts: Sequence[Part]) -> None:
    line = line_of(dim, dtype, len(parts))
    for one in parts:
        add(line, one)
    line.decode()
    line.close()


def _decoded(part: Part) -> Tensor:
    """By the reference."""
    heads, _, dim = part.numbers.shape
    mean = torch.zeros(heads, dim) if part.mean is None else torch.as_tensor(part.mean)
    codes, info, scales = map(torch.as_tensor, (part.codes, part.info, part.scales))
    rows = reference.decode_rows(codes, info, scales, mean, dim).view(part.numbers.shape)
    return rows if part.angles is None else rotate_pairs(rows, *part.angles)
