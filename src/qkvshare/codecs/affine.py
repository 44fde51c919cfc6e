"""Asymmetric round-to-nearest in groups of 64: what ``uniform`` and ``kivi`` have in common.

Rows ``[rows, length]`` are cut along ``length`` into groups of 64; each stores its minimum and its
step in float16. Bytes: all minima, all steps (each ``[rows, groups]``), then the codes row by row,
each row filled up to a multiple of 8 codes.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..card.digest import Bytes
from ..card.errors import CodecError
from ..kernels.planes import pack, unpack
from .finite import most, require_finite

GROUP = 64
BITS = (2, 3, 4, 8)


def require_width(bits: int, name: str) -> None:
    """Raise `CodecError` for a width that nobody packs."""
    if bits not in BITS:
        raise CodecError(f"{name} has no width of {bits} bits; choose one of {BITS}.")


def next_width(bits: int) -> int | None:
    """8 → 4 → 3 → 2 → None."""
    return max((width for width in BITS if width < bits), default=None)


def sizes(rows: int, length: int, bits: int) -> tuple[int, int]:
    """Bytes of scales and of codes."""
    return 4 * rows * _groups(length), rows * _eights(length) * bits


def quantize(rows: Tensor, bits: int) -> Bytes:
    """Encode ``[rows, length]``. Raises `CodecError` where float16 scales overflow."""
    # A last group that is short repeats its last value: same minimum, same maximum.
    padding = -rows.shape[1] % GROUP
    padded = F.pad(rows.float()[None], (0, padding), mode="replicate")[0]
    groups = padded.view(len(rows), _groups(rows.shape[1]), GROUP)

    low = groups.amin(-1, keepdim=True).half()
    high = groups.amax(-1, keepdim=True)
    levels = 2**bits - 1
    # The step is taken from the rounded minimum, so rounding it does not shift the top.
    step = ((high - low.float()) / levels).clamp(min=1e-6).half()
    if not (torch.isfinite(low).all() and torch.isfinite(step).all()):
        raise CodecError(
            f"values up to {rows.abs().max().item():g} do not fit float16 scales (65504 at most). "
            "Use the codec 'raw' for this model."
        )
    codes = ((groups - low.float()) / step.float()).round().clamp(0, levels).to(torch.uint8)
    scales = torch.stack([low, step]).flatten().view(torch.uint8)
    packed = pack(codes.flatten(1)[:, : 8 * _eights(rows.shape[1])], bits).flatten()
    return np.concatenate([scales.cpu().numpy(), packed.cpu().numpy()])


def dequantize(
    blob: Bytes, rows: int, length: int, bits: int, dtype: torch.dtype, name: str
) -> Tensor:
    """Undo `quantize`: ``minimum + code · step``, float32 ``[rows, length]``.

    Raises `CardFormatError` for numbers that ``dtype`` has not; mostly the scales tell.
    """
    split, _ = sizes(rows, length, bits)
    data, groups = torch.from_numpy(blob), _groups(length)
    scales = data[:split].clone().view(torch.float16).float()
    low, step = scales.view(2, rows, groups, 1).unbind()
    largest = float(low.abs().max() + (2**bits - 1) * step.abs().max())
    codes = unpack(data[split:].view(rows, _eights(length) * bits), bits)
    # A single group is not filled up: of few tokens that would be many times what they take.
    wide = min(GROUP, codes.shape[1])
    padded = F.pad(codes, (0, groups * wide - codes.shape[1])).view(rows, groups, wide)
    numbers = torch.addcmul(low, padded.float(), step).flatten(1)[:, :length]
    if not largest <= most(dtype):
        require_finite(numbers, dtype, name)
    return numbers


def _groups(length: int) -> int:
    return -(-length // GROUP)


def _eights(length: int) -> int:
    return -(-length // 8)
