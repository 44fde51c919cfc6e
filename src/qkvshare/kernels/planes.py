"""Sub-byte packing in plain torch.

`pack`: codes of ``bits`` bits (1 to 8) form a little-endian bit stream per row: code ``i`` occupies
bits ``[i·bits, (i+1)·bits)``. Eight codes are exactly ``bits`` bytes, so rows are multiples of
eight.

`pack_planes`: codes are split into planes of 8, 4, 2 or 1 bits, the lowest bits first in the widest
plane (5 = 4 + 1). Byte ``i`` of a plane of ``n`` bytes holds elements ``i``, ``i + n``, ``i + 2n``,
… from its lowest bits up. Neighbours are then unpacked by the same shift, which processors do many
at a time.
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


def planes(bits: int) -> tuple[int, ...]:
    """Widths of the planes of a code: the powers of two in ``bits``, widest first."""
    return tuple(width for width in (8, 4, 2, 1) if bits & width)


def pack_planes(codes: Tensor, bits: int) -> Tensor:
    """Pack uint8 ``[blocks, 8n]`` codes below ``2**bits`` into uint8 ``[blocks, n·bits]``."""
    assert 1 <= bits <= 8
    assert codes.shape[1] % 8 == 0
    out, low = [], 0
    for width in planes(bits):
        part = (codes >> low) & (2**width - 1)
        folded = part.view(len(codes), 8 // width, part.shape[1] * width // 8)  # shift, byte
        shifts = _steps(width, 8 // width, codes).to(torch.uint8)[:, None]
        out.append((folded << shifts).sum(1, dtype=torch.uint8))
        low += width
    return torch.cat(out, dim=1)


def unpack_planes(packed: Tensor, bits: int) -> Tensor:
    """Undo `pack_planes`: uint8 ``[blocks, n·bits]`` to uint8 ``[blocks, 8n]``."""
    eighth, at, low = packed.shape[1] // bits, 0, 0
    codes = torch.zeros(len(packed), 8 * eighth, dtype=torch.uint8, device=packed.device)
    for width in planes(bits):
        part = packed[:, None, at : at + eighth * width]
        shifts = _steps(width, 8 // width, packed).to(torch.uint8)[:, None]
        codes |= (((part >> shifts) & (2**width - 1)) << low).flatten(1)
        at, low = at + eighth * width, low + width
    return codes


def _steps(step: int, count: int, like: Tensor) -> Tensor:
    return torch.arange(0, step * count, step, device=like.device)
