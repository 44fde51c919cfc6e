"""Sub-byte packing in plain torch.

Codes of ``bits`` bits (1 to 8) form a little-endian bit stream per row: code ``i`` occupies bits
``[i·bits, (i+1)·bits)``. Eight codes are exactly ``bits`` bytes, so rows are multiples of eight.
"""

from __future__ import annotations

import torch
from torch import Tensor


def pack(codes: Tensor, bits: int) -> Tensor:
    """Pack ``[..., 8n]`` integer codes below ``2**bits`` into uint8 ``[..., n·bits]``."""
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
