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
from .cpu_memory import array_at, borrowed
from .cpu_queue import CLOSED, NEXT, READY, STATE, count, finish, take
from .cpu_walk import AT, HALF, HERE, WHOLE, WIDTHS, open_block, write_rows
from .operators import LARGEST
from .parts import Part
from .reference import BLOCK, eights
from .rotation import dct, power_of_two, turned

FORMATS = {torch.float32: np.float32, torch.bfloat16: np.uint16}
_DONE = 11  # behind a part's row


def decode_parts(parts: Sequence[Part]) -> None:
    """`reference.decode_rows` of each part into its ``numbers``, keys turned."""
    alike: dict[tuple[int, torch.dtype], list[Part]] = {}
    for one in parts:
        if one.numbers.numel():
            alike.setdefault((one.numbers.shape[2], one.numbers.dtype), []).append(one)
    for (dim, dtype), some in alike.items():
        if power_of_two(dim) > LARGEST:
            for one in some:
                one.numbers.copy_(_decoded(one))
        elif dtype in FORMATS:
            Line(dim, dtype, some).decode()
        else:
            rooms = [torch.empty(one.numbers.shape) for one in some]
            wide = [replace(one, numbers=room) for one, room in zip(some, rooms, strict=True)]
            Line(dim, torch.float32, wide).decode()
            for one, room in zip(some, rooms, strict=True):
                one.numbers.copy_(room)


class Line:
    """Parts of one ``dim`` and number format, taken one after the other by any number of threads,
    also while more are added.

    Attributes:
        added: parts, so far.
    """

    def __init__(self, dim: int, dtype: torch.dtype, parts: Sequence[Part] = (), room: int = 0):
        """Of ``parts``, with room for more."""
        self._dim, self._format = dim, np.empty(0, FORMATS[dtype])
        self._table = np.zeros((len(parts) + room, _DONE + 1), np.int64)
        self._state, self.added = np.zeros(STATE, np.int64), 0
        for one in parts:
            self.add(one)

    def add(self, part: Part) -> None:
        """Its memory is the caller's to keep until it is `decoded`."""
        self._table[self.added, :_DONE] = part.row()
        self.added += 1
        count(self._state, READY)

    def close(self) -> None:
        """No more comes, and what nobody has begun is nobody's."""
        count(self._state, CLOSED)

    @property
    def taken(self) -> int:
        """Parts that somebody has begun."""
        return int(self._state[NEXT])

    def decoded(self, number: int) -> bool:
        """Whether part ``number`` is."""
        return bool(self._table[number, _DONE])

    def decode(self, most: int = 1 << 62, waits: bool = False) -> None:
        """Take parts, ``most`` at most, until there is none; or, if one ``waits``, until `close`,
        or until nothing has come for some milliseconds."""
        dim, space = self._dim, np.empty(BLOCK * eights(self._dim), np.uint8)
        given = self._table, self._state, most, waits
        if dim in WHOLE:
            _decode_whole(*given, np.empty(8 * HALF * dim, np.int16), space, dim, self._format)
            return
        # Sums of levels fit 16 bits up to 64 numbers.
        number = np.int16 if power_of_two(dim) <= 64 else np.int32
        levels, matrix = np.empty(8 * BLOCK * dim, number), dct(dim // power_of_two(dim))
        _decode_any(*given, levels, space, dim, self._format, matrix)


def _decoded(part: Part) -> Tensor:
    """By the reference: no model has such heads."""
    heads, _, dim = part.numbers.shape
    mean = torch.zeros(heads, dim) if part.mean is None else torch.as_tensor(part.mean)
    codes, info, scales = map(torch.as_tensor, (part.codes, part.info, part.scales))
    rows = reference.decode_rows(codes, info, scales, mean, dim).view(part.numbers.shape)
    return rows if part.angles is None else turned(rows, *part.angles)


@part
def _walk(row: Any, levels: Any, space: Any, dim: Any, format_: Any) -> None:
    """All of one part."""
    tiers = np.empty(24, np.int64)
    arrays, tokens = _arrays(row, dim, format_, tiers), row[8]
    for head in range(row[7] // tokens):
        places = head * tokens, head * dim, 0, head * row[9]
        write_rows(tokens, places, row[5] != 0, arrays, tiers, levels, space, dim)


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
            if tiers[HERE + tier] == BLOCK:
                open_block(tier, codes, tiers, levels, dim, wide, h, space, found)
            first = (tier * BLOCK + tiers[HERE + tier]) * dim
            tiers[HERE + tier] += 1
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
        tiers[tier], tiers[AT + tier], tiers[HERE + tier] = count, size, BLOCK
        size += count * (wide * WIDTHS[tier] // 8)
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


@kernel
def widths(info: Any) -> int:
    """The sum of the rows' widths, in bits a number; ``info`` uint8 ``[rows]``."""
    total = 0
    for byte in info:
        total += WIDTHS[byte & 7]
    return total


@kernel
def _decode_whole(
    table: Any, state: Any, most: Any, waits: Any, levels: Any, space: Any, dim: Any, format_: Any
) -> None:
    """Parts of ``dim`` 64, 128 or 256; ``levels`` is room for half a block of each tier, ``space``
    for the codes of a block, ``format_`` an array in that of the numbers."""
    for _ in range(most):
        number = take(state, waits)
        if number < 0:
            break
        _walk(table[number], levels, space, dim, format_)
        finish(table, number, _DONE)


@kernel
def _decode_any(
    table: Any, state: Any, most: Any, waits: Any, levels: Any, space: Any, dim: Any, format_: Any,
    matrix: Any,
) -> None:  # fmt: skip
    """Of any; ``matrix`` is the DCT over the odd part."""
    for _ in range(most):
        number = take(state, waits)
        if number < 0:
            break
        _walk_any(table[number], levels, space, dim, format_, matrix)
        finish(table, number, _DONE)
