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

from . import reference
from .levels import TIERS
from .native import Array, fits, native, numbers_of, span
from .parts import Part
from .rotation import rotate_pairs


def decode_parts(parts: Sequence[Part]) -> None:
    """`reference.decode_rows` of each part into its ``numbers``, keys rotated.

    Raises `ValueError` where a part's arrays do not fit each other; nothing is written then.
    """
    whole = list(filter(takes, parts))
    if whole:
        line = native.Line(len(whole))
        for one in whole:
            add(line, one)
        line.decode()
        line.close()
    for one in parts:
        if not takes(one):
            _decode_another(one)


def takes(part: Part) -> bool:
    """Whether a line does, see `add`."""
    known = part.numbers.dtype in (torch.float32, torch.bfloat16)
    return known and fits(part.numbers.shape[2])


def add(line: Any, part: Part) -> None:
    """To a line of parts that threads share, which keeps it until it is decoded, see
    ``csrc/decode.cpp``."""
    rows = map(span, (part.codes, part.info, part.scales, part.mean))
    line.add(numbers_of(part.numbers, part.angles), *rows, part)


def widths(info: Array) -> int:
    """The sum of the rows' widths, in bits a number; ``info`` uint8 ``[rows]``."""
    if native is not None:
        return int(native.widths(span(info)))
    return int(np.bincount(np.asarray(info) & 7, minlength=8) @ TIERS)


def _decode_another(part: Part) -> None:
    """By way of float32, or by the reference."""
    heads, _, dim = shape = part.numbers.shape
    if fits(dim):
        wide = replace(part, numbers=torch.empty(shape))
        decode_parts([wide])
        part.numbers.copy_(wide.numbers)
        return
    mean = torch.zeros(heads, dim) if part.mean is None else torch.as_tensor(part.mean)
    codes, info, scales = map(torch.as_tensor, (part.codes, part.info, part.scales))
    rows = reference.decode_rows(codes, info, scales, mean, dim).view(shape)
    part.numbers.copy_(rows if part.angles is None else rotate_pairs(rows, *part.angles))
