"""Decode rows on a processor, in Numba: the same bits as the reference, keys turned on the way.

All parts of several layers go into one call: what a small layer costs is mostly calls.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import reference
from .compiling import kernel, part
from .cpu_blocks import hadamard, unpack, unpack_parted
from .cpu_memory import array_at, borrowed
from .cpu_rows import row_writer
from .levels import TIERS
from .parts import Part
from .reference import BLOCK, eights
from .rotation import dct, power_of_two, turned

# Rows that are written without leaving the vector registers; of others the Hadamard transforms
# are at most so large.
_WHOLE, _LARGEST = (64, 128, 256), 256
_WIDTHS = np.array(TIERS, np.int64)
_AT, _HERE = 8, 16  # see `_arrays`


def decode_parts(parts: Sequence[Part]) -> None:
    """`reference.decode_rows` of each part into its ``numbers``, keys turned."""
    alike: dict[tuple[int, torch.dtype], list[Part]] = {}
    for one in parts:
        if one.numbers.numel():
            alike.setdefault((one.numbers.shape[2], one.numbers.dtype), []).append(one)
    for (dim, dtype), some in alike.items():
        if power_of_two(dim) > _LARGEST:
            for one in some:
                one.numbers.copy_(_decoded(one))
        elif dtype in (torch.float32, torch.bfloat16):
            kind = np.float32 if dtype == torch.float32 else np.uint16
            _decode_table(_table(some), dim, np.empty(0, kind))
        else:
            rooms = [torch.empty(one.numbers.shape) for one in some]
            wide = [replace(one, numbers=room) for one, room in zip(some, rooms, strict=True)]
            _decode_table(_table(wide), dim, np.empty(0, np.float32))
            for one, room in zip(some, rooms, strict=True):
                one.numbers.copy_(room)


def _table(parts: Sequence[Part]) -> Any:
    return np.array([part.row() for part in parts])


def _decode_table(table: Any, dim: int, format_: Any) -> None:
    if dim in _WHOLE:
        space = np.empty(BLOCK * dim, np.uint8)
        _decode_whole(table, np.empty(8 * BLOCK * dim, np.int16), space, dim, format_)
        return
    # Sums of levels fit 16 bits up to 64 numbers.
    number = np.int16 if power_of_two(dim) <= 64 else np.int32
    matrix, space = dct(dim // power_of_two(dim)), np.empty(BLOCK * eights(dim), np.uint8)
    _decode_any(table, np.empty(8 * BLOCK * dim, number), space, dim, format_, matrix)


def _decoded(part: Part) -> Tensor:
    """By the reference: no model has such heads."""
    heads, _, dim = part.numbers.shape
    mean = torch.zeros(heads, dim) if part.mean is None else torch.as_tensor(part.mean)
    codes, info, scales = map(torch.as_tensor, (part.codes, part.info, part.scales))
    rows = reference.decode_rows(codes, info, scales, mean, dim).view(part.numbers.shape)
    return rows if part.angles is None else turned(rows, *part.angles)


def _walker(dim: int) -> Any:
    """``f(row, levels, space, format_)``: all of one part, in the order of its rows.

    Memory is written fastest so. Each tier has an open block in ``levels``, and its next one is
    opened when those rows have gone; ``space`` is room for a block's codes.
    """
    plain, turning = row_writer(dim, False), row_writer(dim, True)

    def walk(row: Any, levels_: Any, space_: Any, format_: Any) -> None:
        tiers_ = np.empty(24, np.int64)
        levels, space, tiers = borrowed(levels_), borrowed(space_), borrowed(tiers_)
        info, codes, scales, mean, out, cos, sin = _arrays(row, dim, format_, tiers)
        tokens, apart, turned, number = row[8], row[9], row[5] != 0, 0
        for head in range(row[7] // tokens):
            for token in range(tokens):
                byte = info[number]
                number += 1
                tier = np.int64(byte & 7)
                if tiers[_HERE + tier] == BLOCK:
                    _open(tier, codes, tiers, levels, dim, dim, 0, space, levels)
                first = (tier * BLOCK + tiers[_HERE + tier]) * dim
                tiers[_HERE + tier] += 1
                scale, to = scales[byte >> 3], head * apart + token * dim
                own, angle = head * dim, token * (dim // 2)
                if turned:
                    turning(levels, first, scale, mean, own, cos, sin, angle, out, to)
                else:
                    plain(levels, first, scale, mean, own, cos, sin, angle, out, to)
        tiers_[0] = 0  # it is kept until here

    return part(walk, dim)


@part
def _walk_any(row: Any, levels_: Any, space_: Any, dim: Any, format_: Any, matrix: Any) -> None:
    """The same for any ``dim``, with a DCT."""
    tiers_, wide = np.empty(24, np.int64), row[10]
    found_ = np.empty(BLOCK * wide, np.int16)
    levels, space = borrowed(levels_), borrowed(space_)
    tiers, found = borrowed(tiers_), borrowed(found_)
    info, codes, scales, mean, out, cos, sin = _arrays(row, dim, format_, tiers)
    tokens, apart, turned = row[8], row[9], row[5] != 0
    numbers, h, number = np.empty(dim, np.float32), dim // matrix.shape[0], 0
    for head in range(row[7] // tokens):
        for token in range(tokens):
            byte = info[number]
            number += 1
            tier = np.int64(byte & 7)
            if tiers[_HERE + tier] == BLOCK:
                _open(tier, codes, tiers, levels, dim, wide, h, space, found)
            first = (tier * BLOCK + tiers[_HERE + tier]) * dim
            tiers[_HERE + tier] += 1
            _mix(levels, first, scales[byte >> 3], matrix, mean, head * dim, numbers)
            if turned:
                _turn(numbers, cos, sin, token * (dim // 2))
            _write(numbers, out, head * apart + token * dim)
    tiers_[0] = found_[0] = 0  # they are kept until here


@part
def _arrays(row: Any, dim: Any, format_: Any, tiers: Any) -> Any:
    """Of a part, from their addresses. ``tiers`` has for each tier the rows to come, where their
    codes are, and how many rows of the open block have gone."""
    rows, tokens, apart, wide = row[7], row[8], row[9], row[10]
    heads, bytes_, floats = rows // tokens, np.empty(0, np.uint8), np.empty(0, np.float32)
    info, size = array_at(row[0], rows, bytes_), 0
    for tier in range(8):
        count: Any = 0
        for byte in info:  # of vectors, which one loop for all tiers would not be
            count += np.int64(byte & 7 == tier)
        tiers[tier], tiers[_AT + tier], tiers[_HERE + tier] = count, size, BLOCK
        size += count * (wide * _WIDTHS[tier] // 8)
    mean = array_at(row[3], heads * dim, floats) if row[3] else np.zeros(heads * dim, np.float32)
    angles = tokens * (dim // 2) if row[5] else 0
    return (
        info,
        array_at(row[1], size, bytes_),
        array_at(row[2], 32, floats),
        mean,
        array_at(row[4], (heads - 1) * apart + tokens * dim, format_),
        array_at(row[5], angles, floats),
        array_at(row[6], angles, floats),
    )


@part
def _open(
    tier: Any, codes: Any, tiers: Any, levels: Any, dim: Any, wide: Any, h: Any, space: Any,
    found: Any,
) -> None:  # fmt: skip
    """A tier's next block; ``h`` 0 leaves its levels untransformed, the even ones first."""
    first, tiers[_HERE + tier] = tier * (BLOCK * dim), 0
    if tier == 0:
        levels[: BLOCK * dim] = 0
        return
    count, at = min(BLOCK, tiers[tier]), tiers[_AT + tier]
    size = count * wide * _WIDTHS[tier] // 8
    packed, x = codes[at : at + size], levels[first : first + count * dim]
    if h == 0:
        unpack_parted(tier, packed, space[: count * wide], x)
    elif wide == dim:
        unpack(tier, packed, space[: count * wide], x)
    else:
        unpack(tier, packed, space[: count * wide], found)
        for r in range(count):
            x[r * dim : (r + 1) * dim] = found[r * wide : r * wide + dim]
    if h:
        hadamard(h, x, count * (dim // h))
    tiers[_AT + tier] += size
    tiers[tier] -= count


@part
def _mix(sums: Any, at: Any, scale: Any, matrix: Any, mean: Any, of: Any, numbers: Any) -> None:
    """The inverse DCT over the odd factor, scale and mean."""
    m = np.uint64(matrix.shape[0])
    h, base, own = np.uint64(numbers.size) // m, np.uint64(at), np.uint64(of)
    for j in range(m):
        for i in range(h):
            total = np.float32(sums[base + i]) * scale
            if m > 1:
                total *= matrix[0, j]
            for other in range(np.uint64(1), m):
                total += matrix[other, j] * (np.float32(sums[base + other * h + i]) * scale)
            numbers[j * h + i] = total + mean[own + j * h + i]


@part
def _turn(numbers: Any, cos: Any, sin: Any, at: Any) -> None:
    half, base = np.uint64(numbers.size // 2), np.uint64(at)
    for i in range(half):
        first, second = numbers[i], numbers[half + i]
        numbers[i] = first * cos[base + i] - second * sin[base + i]
        numbers[half + i] = second * cos[base + i] + first * sin[base + i]


@part
def _write(numbers: Any, out: Any, to: Any) -> None:
    """In the number format of ``out``."""
    base = np.uint64(to)
    for i in range(np.uint64(numbers.size)):
        if out.itemsize == 4:
            out[base + i] = numbers[i]
        else:
            # To nearest, ties to even, as processors and torch round.
            bits = np.float32(numbers[i]).view(np.uint32)
            odd = (bits >> np.uint32(16)) & np.uint32(1)
            out[base + i] = np.uint16((bits + np.uint32(0x7FFF) + odd) >> np.uint32(16))


_walk64, _walk128, _walk256 = _walker(64), _walker(128), _walker(256)


@kernel
def widths(info: Any) -> int:
    """The sum of the rows' widths, in bits a number; ``info`` uint8 ``[rows]``."""
    total = 0
    for byte in info:
        total += _WIDTHS[byte & 7]
    return total


@kernel
def _decode_whole(table: Any, levels: Any, space: Any, dim: Any, format_: Any) -> None:
    """Parts of ``dim`` 64, 128 or 256; ``levels`` room for eight blocks, ``space`` for the codes of
    one, ``format_`` an array in that of the numbers."""
    for n in range(len(table)):
        if dim == 64:
            _walk64(table[n], levels, space, format_)
        elif dim == 128:
            _walk128(table[n], levels, space, format_)
        else:
            _walk256(table[n], levels, space, format_)


@kernel
def _decode_any(table: Any, levels: Any, space: Any, dim: Any, format_: Any, matrix: Any) -> None:
    """Of any; ``matrix`` is the DCT over the odd part."""
    for n in range(len(table)):
        _walk_any(table[n], levels, space, dim, format_, matrix)
