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

from qkvshare.card.digest import Bytes
from qkvshare.card.errors import CodecError
from qkvshare.codecs.finite import most, require_finite

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


def pack(codes: Tensor, bits: int) -> Tensor:
    """Pack ``[..., 8n]`` integer codes below ``2**bits`` into uint8 ``[..., n·bits]``.

    Codes form a little-endian bit stream per row: code ``i`` occupies the bits
    ``[i·bits, (i+1)·bits)``. Eight codes are ``bits`` bytes, so rows are multiples of eight.
    """
    assert 1 <= bits <= 8
    assert codes.shape[-1] % 8 == 0
    if bits == 8:
        return codes.to(torch.uint8)
    eights = codes.to(torch.int64).reshape(*codes.shape[:-1], codes.shape[-1] // 8, 8)
    word = (eights << _steps(bits, 8, codes)).sum(-1, keepdim=True)
    return ((word >> _steps(8, bits, codes)) & 0xFF).to(torch.uint8).flatten(-2)


def unpack(packed: Tensor, bits: int) -> Tensor:
    """Undo `pack`: uint8 ``[..., n·bits]`` to uint8 codes ``[..., 8n]``."""
    assert 1 <= bits <= 8
    assert packed.shape[-1] % bits == 0
    if bits == 8:
        return packed
    parts = packed.to(torch.int64).reshape(*packed.shape[:-1], packed.shape[-1] // bits, bits)
    word = (parts << _steps(8, bits, packed)).sum(-1, keepdim=True)
    codes: Tensor = (word >> _steps(bits, 8, packed)) & (2**bits - 1)
    return codes.to(torch.uint8).flatten(-2)


def _steps(step: int, count: int, like: Tensor) -> Tensor:
    return torch.arange(0, step * count, step, device=like.device)
