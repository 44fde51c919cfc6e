"""Sub-byte packing in plain torch.

Codes of 1 to 8 bits are split into planes of 8, 4, 2 or 1 bits, the lowest bits first in the widest
plane (5 = 4 + 1). Byte ``i`` of a plane of ``n`` bytes holds elements ``i``, ``i + n``, ``i + 2n``,
… from its lowest bits up. Neighbours are then unpacked by the same shift, which processors do many
at a time.
"""

from __future__ import annotations

import torch
from torch import Tensor


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
