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
from .ahead import beside
from .compiling import kernel, part
from .cpu_blocks import hadamard, unpack
from .cpu_rows import array_at, row_writer
from .levels import TIERS
from .parts import Part
from .reference import BLOCK
from .rotation import dct, power_of_two, turned

# Rows that are written without leaving the vector registers; of others the Hadamard transforms
# are at most so large.
_WHOLE, _LARGEST = (64, 128, 256), 256
_WIDTHS = np.array(TIERS, np.int64)


def decode_parts(parts: Sequence[Part], threads: int = 1) -> None:
    """`reference.decode_rows` of each part into its ``numbers``, keys turned; on one thread or two,
    which meet at the end only: where both run Python, each waits for the other at every call.
    """
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
            _decode_alike(some, dim, np.empty(0, kind), threads)
        else:
            rooms = [torch.empty(one.numbers.shape) for one in some]
            wide = [replace(one, numbers=room) for one, room in zip(some, rooms, strict=True)]
            _decode_alike(wide, dim, np.empty(0, np.float32), threads)
            for one, room in zip(some, rooms, strict=True):
                one.numbers.copy_(room)


def _decode_alike(parts: Sequence[Part], dim: int, format_: Any, threads: int) -> None:
    """Parts of one ``dim`` and number format, that of an array ``format_``."""
    if threads == 1 or len(parts) == 1:
        _decode_table(_table(parts), dim, format_)
        return
    half = len(parts) // 2
    other = beside(_decode_table, _table(parts[half:]), dim, format_)
    try:
        _decode_table(_table(parts[:half]), dim, format_)
    finally:
        other.result()  # it writes to what the caller holds


def _table(parts: Sequence[Part]) -> Any:
    return np.array([part.row() for part in parts])


def _decode_table(table: Any, dim: int, format_: Any) -> None:
    if dim in _WHOLE:
        _decode_whole(table, np.empty(8 * BLOCK * dim, np.int16), dim, format_)
        return
    # Sums of levels fit 16 bits up to 64 numbers.
    number = np.int16 if power_of_two(dim) <= 64 else np.int32
    matrix = dct(dim // power_of_two(dim))
    _decode_any(table, np.empty(8 * BLOCK * dim, number), dim, format_, matrix)


def _decoded(part: Part) -> Tensor:
    """By the reference: no model has such heads."""
    heads, _, dim = part.numbers.shape
    mean = torch.zeros(heads, dim) if part.mean is None else torch.as_tensor(part.mean)
    codes, info, scales = map(torch.as_tensor, (part.codes, part.info, part.scales))
    rows = reference.decode_rows(codes, info, scales, mean, dim).view(part.numbers.shape)
    return rows if part.angles is None else turned(rows, *part.angles)


def _walker(dim: int) -> Any:
    """``f(row, levels, format_)``: all of one part, in the order of its rows.

    Memory is written fastest so. Each tier has an open block in ``levels``, and its next one is
    opened when those rows have gone.
    """
    plain, turning = row_writer(dim, False), row_writer(dim, True)

    def walk(row: Any, levels: Any, format_: Any) -> None:
        info, codes, scales, mean, out, cos, sin, left, at = _arrays(row, dim, format_)
        tokens, apart, turned, here = row[8], row[9], row[5] != 0, np.full(8, BLOCK)
        space, unused = np.empty(BLOCK * dim, np.uint8), np.empty(0, np.int16)
        number = 0
        for head in range(row[7] // tokens):
            for token in range(tokens):
                byte = info[number]
                number += 1
                tier = np.int64(byte & 7)
                if here[tier] == BLOCK:
                    _open(tier, codes, left, at, levels, dim, dim, 0, space, unused)
                    here[tier] = 0
                first = (tier * BLOCK + here[tier]) * dim
                here[tier] += 1
                scale, to = scales[byte >> 3], head * apart + token * dim
                own, angle = head * dim, token * (dim // 2)
                if turned:
                    turning(levels, first, scale, mean, own, cos, sin, angle, out, to)
                else:
                    plain(levels, first, scale, mean, own, cos, sin, angle, out, to)

    return part(walk, dim)


@part
def _walk_any(row: Any, levels: Any, dim: Any, format_: Any, matrix: Any) -> None:
    """The same for any ``dim``, with a DCT."""
    info, codes, scales, mean, out, cos, sin, left, at = _arrays(row, dim, format_)
    tokens, apart, wide, turned, here = row[8], row[9], row[10], row[5] != 0, np.full(8, BLOCK)
    space, found = np.empty(BLOCK * wide, np.uint8), np.empty(BLOCK * wide, np.int16)
    numbers, h, number = np.empty(dim, np.float32), dim // matrix.shape[0], 0
    for head in range(row[7] // tokens):
        for token in range(tokens):
            byte = info[number]
            number += 1
            tier = np.int64(byte & 7)
            if here[tier] == BLOCK:
                _open(tier, codes, left, at, levels, dim, wide, h, space, found)
                here[tier] = 0
            first = (tier * BLOCK + here[tier]) * dim
            here[tier] += 1
            _mix(levels, first, scales[byte >> 3], matrix, mean, head * dim, numbers)
            if turned:
                _turn(numbers, cos, sin, token * (dim // 2))
            _write(numbers, out, head * apart + token * dim)


@part
def _arrays(row: Any, dim: Any, format_: Any) -> Any:
    """Of a part, from their addresses; and by tier: rows to come, and where their codes are."""
    rows, tokens, apart, wide = row[7], row[8], row[9], row[10]
    heads, bytes_, floats = rows // tokens, np.empty(0, np.uint8), np.empty(0, np.float32)
    info = array_at(row[0], rows, bytes_)
    left, at, size = np.zeros(8, np.int64), np.zeros(8, np.int64), 0
    for byte in info:
        left[byte & 7] += 1
    for tier in range(8):
        at[tier] = size
        size += left[tier] * (wide * _WIDTHS[tier] // 8)
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
        left,
        at,
    )


@part
def _open(
    tier: Any, codes: Any, left: Any, at: Any, levels: Any, dim: Any, wide: Any, h: Any,
    space: Any, found: Any,
) -> None:  # fmt: skip
    """A tier's next block; ``h`` 0 leaves its levels untransformed."""
    first = tier * (BLOCK * dim)
    if tier == 0:
        levels[: BLOCK * dim] = 0
        return
    count = min(BLOCK, left[tier])
    size = count * wide * _WIDTHS[tier] // 8
    packed, x = codes[at[tier] : at[tier] + size], levels[first : first + count * dim]
    if wide == dim:
        unpack(tier, packed, space[: count * wide], x)
    else:
        unpack(tier, packed, space[: count * wide], found)
        for r in range(count):
            x[r * dim : (r + 1) * dim] = found[r * wide : r * wide + dim]
    if h:
        hadamard(h, x, 0, count * (dim // h))
    at[tier] += size
    left[tier] -= count


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
def _decode_whole(table: Any, levels: Any, dim: Any, format_: Any) -> None:
    """Parts of ``dim`` 64, 128 or 256; ``levels`` room for eight blocks, ``format_`` an array in
    that of the numbers."""
    for n in range(len(table)):
        if dim == 64:
            _walk64(table[n], levels, format_)
        elif dim == 128:
            _walk128(table[n], levels, format_)
        else:
            _walk256(table[n], levels, format_)


@kernel
def _decode_any(table: Any, levels: Any, dim: Any, format_: Any, matrix: Any) -> None:
    """Of any; ``matrix`` is the DCT over the odd part."""
    for n in range(len(table)):
        _walk_any(table[n], levels, dim, format_, matrix)
