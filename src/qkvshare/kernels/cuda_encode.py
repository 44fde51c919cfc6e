"""Encode rows on a GPU, in Triton: DCT, Hadamard, scale, nearest levels; then codes to planes.

Sums are taken in the order of the reference, without fused additions, so the codes are its codes.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .cuda_order import (
    BLOCK_AT,
    OUT,
    TOKENS,
    address,
    block_at,
    order,
    scale_of,
    size,
    table_of,
    width,
)
from .cuda_tables import dct_on, thresholds_on
from .parts import Part
from .reference import BLOCK, eights
from .rotation import power_of_two


def encode_part(part: Part, nbytes: int) -> Tensor:
    """`reference.encode_rows` of a part's float32 ``numbers``: uint8 ``[nbytes]``."""
    dim, device = part.numbers.shape[2], part.numbers.device
    wide, h = eights(dim), power_of_two(dim)
    out = torch.empty(nbytes, dtype=torch.uint8, device=device)
    if nbytes == 0:
        return out
    with torch.cuda.device_of(out):  # where Triton launches
        table = table_of([part.row()], device)
        found = order(table, len(part.info))
        # Codes of a byte each, block by block; those behind a row's end stay zero.
        most = found.blocks.shape[1]
        codes = torch.zeros(most * BLOCK, wide, dtype=torch.uint8, device=device)
        _encode[(most,)](
            table, found.rows, found.blocks, found.counts, dct_on(device, dim),
            thresholds_on(device), codes, most, dim, dim // h, h, h.bit_length() - 1, wide, BLOCK,
            enable_fp_fusion=False,
        )  # fmt: skip
        _pack[(most,)](codes, found.blocks, found.counts, out, wide, BLOCK)
    return out


@triton.jit
def _hadamard(x, H: tl.constexpr, STAGES: tl.constexpr, BLOCK: tl.constexpr):
    """Butterflies over ``x [BLOCK, H]`` in the geometry of Pease: neighbours in, halves out."""
    for _ in tl.static_range(STAGES):
        one, two = tl.split(tl.reshape(x, (BLOCK, H // 2, 2)))
        x = tl.reshape(tl.permute(tl.join(one + two, one - two), (0, 2, 1)), (BLOCK, H))
    return x


@triton.jit(do_not_specialize=["most"])
def _encode(
    table, rows, blocks, counts, dct, thresholds, codes, most,
    DIM: tl.constexpr, M: tl.constexpr, H: tl.constexpr, STAGES: tl.constexpr,
    WIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One block: codes of a byte each."""
    if tl.program_id(0) >= tl.load(counts):
        return
    tier, count, _, token, owner = block_at(rows, blocks, most, tl.program_id(0), BLOCK)
    scale, column, bits = scale_of(table, 0, owner)[:, None], tl.arange(0, H)[None, :], width(tier)
    here = tl.arange(0, BLOCK)[:, None] < count
    row = (owner >> 5).to(tl.int64) * size(table, 0, TOKENS) + token
    given = address(table, 0, OUT, tl.float32) + row[:, None] * DIM + column
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    to = codes + place[:, None].to(tl.int64) * WIDE + column
    for run in tl.static_range(M):
        if M == 1:
            x = tl.load(given, here, 0)
        else:
            x = tl.load(dct + run * M) * tl.load(given, here, 0)
            for other in tl.static_range(1, M):
                x += tl.load(dct + run * M + other) * tl.load(given + other * H, here, 0)
        x = _hadamard(x, H, STAGES, BLOCK) * scale
        code = tl.zeros((BLOCK, H), tl.int32)
        for step in tl.static_range(7, -1, -1):  # how many thresholds are below
            if step < bits:
                more = code + (1 << step)
                below = tl.load(thresholds + tier * 256 + more - 1)
                code = tl.where(x > below, more, code)
        tl.store(to + run * H, code.to(tl.uint8), here)


@triton.jit
def _pack_plane(codes, out, low, bits, count, PLANE: tl.constexpr, WIDE: tl.constexpr):
    """Write the plane of ``PLANE`` bits, if there is one; what comes behind it."""
    if (bits & PLANE) != 0:
        nbytes = count * WIDE * PLANE // 8
        for start in range(0, nbytes, 1024):
            at = start + tl.arange(0, 1024)
            byte = tl.zeros((1024,), tl.int32)
            for turn in tl.static_range(8 // PLANE):
                code = tl.load(codes + at + turn * nbytes, at < nbytes, 0).to(tl.int32)
                byte |= ((code >> low) & ((1 << PLANE) - 1)) << (turn * PLANE)
            tl.store(out + at, byte.to(tl.uint8), at < nbytes)
        out += nbytes
        low += PLANE
    return out, low


@triton.jit
def _pack(codes, blocks, counts, out, WIDE: tl.constexpr, BLOCK: tl.constexpr):
    """One block: planes."""
    if tl.program_id(0) >= tl.load(counts):
        return
    block = blocks + tl.program_id(0) * BLOCK_AT
    bits, count = width(tl.load(block).to(tl.int32)), tl.load(block + 1).to(tl.int32)
    codes += tl.program_id(0).to(tl.int64) * BLOCK * WIDE
    out += tl.load(block + 2)
    low = bits * 0
    for w in tl.static_range(3, -1, -1):
        out, low = _pack_plane(codes, out, low, bits, count, 1 << w, WIDE)
