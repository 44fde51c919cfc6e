"""Codes to sums of levels on a GPU, in Triton, four codes a word: rows of 64, 128 or 256 numbers.

A word of 32 bits holds the codes of four neighbours, a byte each, so that shifts and masks do four
at once, and words of a full block are read many at a time. The four bytes give four matrices of
levels, of every fourth column each; the Hadamard transform is the sum of their products with every
fourth row of the matrix of ±1, and columns need not be brought in line again.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .cuda_order import width


@triton.jit
def _signs(start, first, H: tl.constexpr, G: tl.constexpr):
    """Rows ``start, start + 4 ...`` of the Hadamard transform of ``H`` numbers, ``G`` columns from
    ``first`` on: float16 ``[H / 4, G]``."""
    row, column = start + 4 * tl.arange(0, H // 4), first + tl.arange(0, G)
    both = row[:, None] & column[None, :]
    both ^= both >> 4
    both ^= both >> 2
    both ^= both >> 1
    return (1 - 2 * (both & 1)).to(tl.float16)


@triton.jit
def word_signs(G: tl.constexpr):
    """What `word_units` multiplies with: eight matrices for units of 32, else four."""
    if G == 32:
        found = (
            _signs(0, 0, 64, G), _signs(1, 0, 64, G), _signs(2, 0, 64, G), _signs(3, 0, 64, G),
            _signs(0, G, 64, G), _signs(1, G, 64, G), _signs(2, G, 64, G), _signs(3, G, 64, G),
        )  # fmt: skip
    else:
        # Of another length: what Triton makes of it is not Python's.
        found = (  # type: ignore[assignment]
            _signs(0, 0, G, G), _signs(1, 0, G, G), _signs(2, 0, G, G), _signs(3, 0, G, G),
        )  # fmt: skip
    return found


@triton.jit
def _plane(words, low, code, bits, row, at, PLANE: tl.constexpr, WIDE: tl.constexpr):
    """Add the plane of ``PLANE`` bits of a full block, if there is one, to ``code``."""
    if (bits & PLANE) != 0:
        place = words + row % (4 * PLANE) * (WIDE // 4) + at
        word = tl.load(tl.multiple_of(place, (16, 16)))
        turn = (row // (4 * PLANE) * PLANE).to(tl.uint32)
        code |= ((word >> turn) & (0x01010101 * ((1 << PLANE) - 1))) << low
        words += PLANE * WIDE
        low += PLANE
    return words, low, code


@triton.jit
def _bytes(
    codes, low, code, bits, count, row, at, PLANE: tl.constexpr, WIDE: tl.constexpr
):  # fmt: skip
    """The same of any block, byte by byte."""
    if (bits & PLANE) != 0:
        nbytes = count * WIDE * PLANE // 8
        for turn in tl.static_range(4):
            place = row * WIDE + 4 * at + turn
            byte = tl.load(codes + place % nbytes, row < count, 0).to(tl.uint32)
            byte = (byte >> (place // nbytes * PLANE).to(tl.uint32)) & ((1 << PLANE) - 1)
            code |= byte << (low + 8 * turn)
        codes += nbytes
        low += PLANE
    return codes, low, code


@triton.jit
def _words(codes, bits, count, first, H: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr):
    """Codes of ``H`` columns from ``first`` on, uint32 ``[BLOCK, H / 4]``."""
    row, at = tl.arange(0, BLOCK)[:, None], first // 4 + tl.arange(0, H // 4)[None, :]
    code, low = tl.zeros((BLOCK, H // 4), tl.uint32), (bits * 0).to(tl.uint32)
    if (count == BLOCK) & (codes.to(tl.int64) % 16 == 0):
        words = tl.cast(codes, tl.pointer_type(tl.uint32))
        for w in tl.static_range(3, -1, -1):
            words, low, code = _plane(words, low, code, bits, row, at, 1 << w, WIDE)
    else:
        for w in tl.static_range(3, -1, -1):
            codes, low, code = _bytes(codes, low, code, bits, count, row, at, 1 << w, WIDE)
    return code


@triton.jit
def _levels(levels, word, turn):
    """Of byte ``turn`` of each word, float16."""
    return tl.load(levels + ((word >> (8 * turn)) & 255))


@triton.jit
def word_units(
    codes, levels, signs, scale, tier, count,
    G: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Both units of a block's rows, rotated back and scaled, float32 ``[BLOCK, G]``."""
    bits, levels = width(tier), levels + tier * 256
    low, high = tl.zeros((BLOCK, G), tl.float32), tl.zeros((BLOCK, G), tl.float32)
    if G == 32:
        word = _words(codes, bits, count, 0, 64, WIDE, BLOCK)
        for turn in tl.static_range(4):
            one = _levels(levels, word, turn)
            low = tl.dot(one, signs[turn], low)
            high = tl.dot(one, signs[4 + turn], high)
    else:
        first = _words(codes, bits, count, 0, G, WIDE, BLOCK)
        second = _words(codes, bits, count, G, G, WIDE, BLOCK)
        for turn in tl.static_range(4):
            low = tl.dot(_levels(levels, first, turn), signs[turn], low)
            high = tl.dot(_levels(levels, second, turn), signs[turn], high)
        low, high = low + high, low - high
    return low * scale, high * scale
