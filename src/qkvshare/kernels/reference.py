"""The row kernels in plain torch, on any device: what every other implementation must equal.

A *row* is ``dim`` numbers with one width and one scale. Its byte holds its tier (3 bits) and its
scale (5 bits, an index into ``scales``). Codes of one width lie together, widths ascending; within
a width, rows are taken in order in blocks of `BLOCK`, and each block is packed as one, see
`pack_planes`. Codes of a row whose ``dim`` is no multiple of 8 are padded to one.

Codes of 1 to 8 bits are split into planes of 8, 4, 2 or 1 bits, the lowest bits first in the widest
plane (5 = 4 + 1). Byte ``i`` of a plane of ``n`` bytes holds elements ``i``, ``i + n``, ``i + 2n``,
… from its lowest bits up. Neighbours are then unpacked by the same shift, which processors do many
at a time.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .levels import TIERS, levels, thresholds
from .rotation import hadamard, mix, rotate

BLOCK = 32  # rows


def eights(dim: int) -> int:
    """``dim`` rounded up to a multiple of 8: codes of a row."""
    return -(-dim // 8) * 8


def encode_rows(rows: Tensor, info: Tensor, scales: Tensor) -> Tensor:
    """Rotate rows, put them on the nearest levels and pack the codes.

    Args:
        rows: float32 ``[rows, dim]``.
        info: the rows' bytes, uint8 ``[rows]``.
        scales: what a rotated row is multiplied with to be in units of levels, float32 ``[32]``.

    Returns:
        uint8 ``[bytes]``.
    """
    rotated = rotate(rows) * scales[(info >> 3).int(), None]
    out = [rows.new_zeros(0, dtype=torch.uint8)]
    for tier, bits in enumerate(TIERS[1:], 1):
        mine = rotated[(info & 7) == tier]
        between = torch.from_numpy(thresholds(bits)).to(rows.device)
        codes = torch.bucketize(mine, between).to(torch.uint8)
        codes = torch.nn.functional.pad(codes, (0, eights(rows.shape[1]) - rows.shape[1]))
        whole = len(codes) // BLOCK * BLOCK
        out += [pack_planes(codes[:whole].view(-1, BLOCK * codes.shape[1]), bits).flatten()]
        out += [pack_planes(codes[whole:].view(1, -1), bits).flatten()]
    return torch.cat(out)


def decode_rows(codes: Tensor, info: Tensor, scales: Tensor, mean: Tensor, dim: int) -> Tensor:
    """Undo `encode_rows`: levels, rotated back, times scale, plus mean.

    Args:
        codes: uint8 ``[bytes]``, as many as ``info`` says.
        info: the rows' bytes, uint8 ``[rows]``.
        scales: what a row's levels are multiplied with after rotation, float32 ``[32]``.
        mean: added to the rows, float32 ``[heads, dim]``; each head has as many rows.
        dim: numbers of a row.

    Returns:
        float32 ``[rows, dim]``.
    """
    sums, at, wide = codes.new_zeros(len(info), dim, dtype=torch.float32), 0, eights(dim)
    for tier, bits in enumerate(TIERS[1:], 1):
        mine = (info & 7) == tier
        count = int(mine.sum())
        size = count * wide * bits // 8
        whole = count // BLOCK * BLOCK
        split = at + whole * wide * bits // 8
        blocks = codes[at:split].view(whole // BLOCK, BLOCK * wide * bits // 8)
        parts = [unpack_planes(blocks, bits), unpack_planes(codes[split : at + size][None], bits)]
        found = torch.cat([part.flatten() for part in parts]).view(count, wide)[:, :dim]
        sums[mine] = torch.from_numpy(levels(bits)).to(codes.device)[found.int()].float()
        at += size
    # Sums of whole numbers: exact in float32.
    out = mix(hadamard(sums) * scales[(info >> 3).int(), None], inverse=True)
    return (out.view(len(mean), -1, dim) + mean[:, None]).flatten(0, 1)


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
        shifts = torch.arange(0, 8, width, dtype=torch.uint8, device=codes.device)[:, None]
        out.append((folded << shifts).sum(1, dtype=torch.uint8))
        low += width
    return torch.cat(out, dim=1)


def unpack_planes(packed: Tensor, bits: int) -> Tensor:
    """Undo `pack_planes`: uint8 ``[blocks, n·bits]`` to uint8 ``[blocks, 8n]``."""
    eighth, at, low = packed.shape[1] // bits, 0, 0
    codes = torch.zeros(len(packed), 8 * eighth, dtype=torch.uint8, device=packed.device)
    for width in planes(bits):
        part = packed[:, None, at : at + eighth * width]
        shifts = torch.arange(0, 8, width, dtype=torch.uint8, device=packed.device)[:, None]
        codes |= (((part >> shifts) & (2**width - 1)) << low).flatten(1)
        at, low = at + eighth * width, low + width
    return codes
