"""Attention to tokens that are still codes: a block at a time is decoded into a cache of the
processor, and what is read from memory are codes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numba
import numpy as np
import numpy.typing as npt

from .compiling import kernel, part
from .cpu_flash import ORDER, PART, attend_block, attend_numbers, begin, finish, room_of, spaces_of
from .cpu_memory import array_at, borrowed, count_on
from .cpu_merge import LINE, merge
from .cpu_tiles import BLOCK
from .cpu_walk import AT, HALF, HERE, WHOLE, WIDTHS, open_half, write_rows
from .parts import Part
from .reference import BLOCK as ROWS

# Of one piece: ``tokens`` of ``all``, the first of which is ``first``; addresses, of rows before
# each part too (see `_before`).
_PART_FIELDS = ("info", "codes", "scales", "mean", "cos", "sin", "before")
PIECE = np.dtype(
    [(name, np.int64) for name in ("parts", "tokens", "all", "first")]
    + [(f"{of}_{name}", np.int64) for of in ("key", "value") for name in _PART_FIELDS]
)


@dataclass(frozen=True, eq=False)
class Piece:
    """Keys and values of some tokens as codes, never changed.

    Attributes:
        tokens: how many.
        row: their addresses, of what is held.
    """

    tokens: int
    row: tuple[int, ...]
    held: tuple[object, ...]

    @classmethod
    def of(cls, parts: Sequence[Part]) -> Self | None:
        """Of both; None where there are no kernels for them."""
        row, held = list[int](), list[object]()
        heads, tokens, dim = parts[0].numbers.shape
        if dim not in WHOLE or parts[1].numbers.shape != parts[0].numbers.shape:
            return None
        for one in parts:
            info = np.asarray(one.info)
            before = np.zeros((heads * -(-tokens // PART) + 1, 8), np.int64)
            _before(info, tokens, before)
            address, codes, scales, mean, _, cos, sin, *_ = one.row()
            row += [address, codes, scales, mean, cos, sin, before.ctypes.data]
            held += [one, info, before]
        return cls(tokens, tuple(row), tuple(held))

    def __deepcopy__(self, _: object) -> Self:
        """Its addresses would be those of the original."""
        return self


@dataclass(frozen=True, eq=False)
class Codes:
    """Pieces that follow each other from token 0 on, up to ``tokens``.

    Attributes:
        parts: of a head, that threads take.
        table: `PIECE` of each.
    """

    pieces: tuple[Piece, ...]
    tokens: int
    parts: int
    table: npt.NDArray[Any]

    @classmethod
    def of(cls, pieces: Sequence[Piece], tokens: int) -> Self:
        """The first ``tokens`` of ``pieces``."""
        rows, first = list[tuple[int, ...]](), 0
        for piece in pieces:
            used = min(piece.tokens, tokens - first)
            if used > 0:
                rows.append((-(-used // PART), used, piece.tokens, first, *piece.row))
            first += piece.tokens
        parts = sum(row[0] for row in rows)
        return cls(tuple(pieces), tokens, parts, np.array(rows, PIECE))

    def __deepcopy__(self, _: object) -> Self:
        """Nobody changes it."""
        return self


@kernel
def _before(info: Any, tokens: Any, before: Any) -> None:
    """Of each tier the rows before each part of each head, and all, ``[heads · parts + 1, 8]``."""
    counts, n = np.zeros(8, np.int64), 0
    for start in range(0, len(info), tokens):
        for token in range(tokens):
            if token % PART == 0:
                before[n] = counts
                n += 1
            counts[info[start + token] & 7] += 1
    before[n] = counts


def work_coded(pointer: Any) -> None:
    """As `work`, where some tokens are codes."""
    orders = numba.carray(pointer, (1,), ORDER)  # type: ignore[attr-defined]
    order, first = orders[0], np.int64(orders.ctypes.data)
    dim, floats = order.dim, np.empty(0, np.float32)
    size = room_of(order.group * order.new, dim)
    room = np.empty(size + 2 * BLOCK * dim + LINE // 4, np.float32)
    spaces = spaces_of(room, order)
    there = (np.int64(room.ctypes.data) + 4 * size + LINE - 1) // LINE * LINE
    # Of keys, and of values: open blocks, and what `cpu_walk` knows of them.
    levels, tiers = np.empty((2, 8 * HALF * dim), np.int16), np.empty((2, 24), np.int64)
    space = np.empty(ROWS * dim, np.uint8)
    nothing = np.zeros(order.kv_heads * dim, np.float32)
    opened = (
        (borrowed(levels[0]), borrowed(tiers[0]), borrowed(space), borrowed(nothing)),
        (borrowed(levels[1]), borrowed(tiers[1]), borrowed(space), borrowed(nothing)),
    )
    while True:
        unit = count_on(first)
        if unit >= order.units:
            break
        _attend_unit(order, unit, there, opened, spaces, floats)
        if count_on(first + 8) == order.units - 1:
            merge(order, floats)
    # They are kept until here.
    room[0] = levels[0, 0] = tiers[0, 0] = space[0] = nothing[0] = 0


@part
def _attend_unit(order: Any, unit: Any, there: Any, opened: Any, spaces: Any, floats: Any) -> None:
    """To codes or to numbers: those come last."""
    n = unit % order.parts
    pieces = array_at(order.codes, order.pieces, np.empty(0, PIECE))
    for piece in pieces:
        if n < piece.parts:
            _attend_codes(order, piece, unit, n, there, opened, spaces, floats)
            return
        n -= piece.parts
    attend_numbers(order, unit, n * PART, spaces, floats)


@part
def _attend_codes(
    order: Any, piece: Any, unit: Any, n: Any, there: Any, opened: Any, spaces: Any, floats: Any
) -> None:
    dim, all_ = order.dim, piece.all
    batch, head, to = begin(order, unit, spaces, floats)
    start = n * PART
    stop, unit_of = min(piece.tokens, start + PART), head * (-(-all_ // PART)) + n
    rows = order.kv_heads * all_
    values = there + 4 * BLOCK * dim
    own = _opened(
        (piece.key_info, piece.key_codes, piece.key_scales, piece.key_mean, there),
        (piece.key_cos, piece.key_sin, piece.key_before), unit_of, rows, all_, dim, opened[0],
        floats,
    )  # fmt: skip
    other = _opened(
        (piece.value_info, piece.value_codes, piece.value_scales, piece.value_mean, values),
        (piece.value_cos, piece.value_sin, piece.value_before), unit_of, rows, all_, dim, opened[1],
        floats,
    )  # fmt: skip
    for token in range(start, stop, BLOCK):
        count = min(BLOCK, stop - token)
        places = head * all_ + token, head * dim, token, 0
        levels, tiers, space, _ = opened[0]
        write_rows(count, places, piece.key_cos != 0, own, tiers, levels, space, dim)
        levels, tiers, space, _ = opened[1]
        write_rows(count, places, False, other, tiers, levels, space, dim)
        at = there, dim, values, dim, 4
        attend_block(order, batch, piece.first + token, count, at, to, spaces, floats)
    finish(order, to, spaces, floats)


@part
def _opened(
    places: Any, more: Any, unit: Any, rows: Any, tokens: Any, dim: Any, opened: Any, floats: Any
) -> Any:
    """The arrays of `write_rows`, whose next row is the first one of a part."""
    info, codes, scales, mean, out = places
    cos, sin, before_ = more
    levels, tiers, space, nothing = opened
    bytes_, angles = np.empty(0, np.uint8), tokens * (dim // 2) if cos else 0
    parts = rows // tokens * (-(-tokens // PART))
    before = array_at(before_, (parts + 1) * 8, np.empty(0, np.int64))
    base = 0
    for tier in range(8):
        base += before[parts * 8 + tier] * (dim * WIDTHS[tier] // 8)
    coded = array_at(codes, base, bytes_)
    base = 0
    for tier in range(8):
        each, gone = dim * WIDTHS[tier] // 8, before[unit * 8 + tier]
        whole, all_ = gone // ROWS * ROWS, before[parts * 8 + tier]
        here = gone - whole
        tiers[tier], tiers[AT + tier], tiers[HERE + tier] = all_ - whole, base + whole * each, here
        if here % HALF:
            open_half(tier, coded, tiers, levels, dim, space)
        base += all_ * each
    added = array_at(mean, rows // tokens * dim, floats) if mean else nothing
    return (
        array_at(info, rows, bytes_),
        coded,
        array_at(scales, 32, floats),
        added,
        array_at(out, BLOCK * dim, floats),
        array_at(cos, angles, floats),
        array_at(sin, angles, floats),
    )
