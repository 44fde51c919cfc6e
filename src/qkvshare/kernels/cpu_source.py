"""Rows from where a cache has them to their codes, on a processor, in Numba.

Keys are turned back and their mean is taken away on the way, so that nothing is copied but the rows
of the part at work. All parts of several layers go into one call: what a small layer costs is
mostly calls.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .ahead import beside
from .compiling import kernel, part
from .cpu_counts import SUMS, center
from .cpu_encode import code_rows, rotate
from .cpu_memory import array_at
from .levels import LOWEST, OCTAVE, TIERS, UNIT, levels
from .rotation import dct, power_of_two

# Which tier a width is.
_TIER = np.array([TIERS.index(bits) if bits in TIERS else 0 for bits in range(9)], np.uint8)
_TOP = float(levels(8)[-1])


@dataclass(frozen=True)
class Source:
    """Rows of one layer's keys or values, and where what is made of them goes.

    Attributes:
        numbers: ``[heads, tokens, dim]``, float32 or bfloat16; a head's rows lie one behind the
            other.
        angles: cosines and sines that turn pairs ``(i, i + dim / 2)``, float32
            ``[tokens, dim / 2]``; None where nothing is turned.
        mean: uint8 ``[heads · (4 + dim)]``, to which the mean over the tokens goes, which is taken
            away: of each head a step, float32, then of all int8 codes. None where it stays.
        out: to measure, float32 ``[heads · tokens]`` for mean squares; to encode, uint8 for an
            exponent of two bytes, a byte a row, and codes.
        widths: to encode, uint8 ``[heads, tokens]``.
    """

    numbers: Tensor
    angles: tuple[Tensor, Tensor] | None
    mean: npt.NDArray[np.uint8] | None
    out: npt.NDArray[Any]
    widths: Tensor | None = None

    def row(self) -> list[int]:
        """Of the table that kernels read: addresses (0 where there are none), then sizes."""
        heads, tokens, dim = self.numbers.shape
        assert self.numbers.stride()[1:] == (dim, 1)
        cos, sin = (0, 0) if self.angles is None else [at.data_ptr() for at in self.angles]
        return [
            *(self.numbers.data_ptr(), cos, sin),
            0 if self.mean is None else self.mean.ctypes.data,
            self.out.ctypes.data,
            0 if self.widths is None else self.widths.data_ptr(),
            *(heads * tokens, tokens, self.numbers.stride(0), self.out.size),
            int(self.numbers.dtype == torch.bfloat16),
        ]


def measure(sources: Sequence[Source], threads: int = 1) -> None:
    """Mean squares of all rows, of keys without their mean; on one thread or two."""
    _halves(_measure_all, sources, threads)


def encode(sources: Sequence[Source], threads: int = 1) -> None:
    """Everything that ``packed`` writes of the rows; on one thread or two."""
    _halves(_encode_all, sources, threads)


def _halves(work: Callable[[Sequence[Source]], None], all_: Sequence[Source], threads: int) -> None:
    """Two threads meet at the end only: where both run Python, each waits for the other."""
    half = len(all_) // 2 if threads > 1 else 0
    if not half:
        work(all_)
        return
    other = beside(work, all_[half:])
    try:
        work(all_[:half])
    finally:
        other.result()  # it writes to what the caller holds


def _measure_all(sources: Sequence[Source]) -> None:
    for dim, table, space in _alike(sources):
        _measure(table, dim, space)


def _encode_all(sources: Sequence[Source]) -> None:
    for dim, table, space in _alike(sources):
        _encode(table, dct(dim // power_of_two(dim)), dim, space)


def _alike(sources: Sequence[Source]) -> list[tuple[int, npt.NDArray[Any], npt.NDArray[Any]]]:
    """By head dim: the table of those parts, and room for the largest of them."""
    dims: dict[int, list[Source]] = {}
    for one in sources:
        dims.setdefault(one.numbers.shape[2], []).append(one)
    return [
        (
            dim,
            np.array([one.row() for one in some]),
            np.empty(max(one.numbers.numel() for one in some), np.float32),
        )
        for dim, some in dims.items()
    ]


@part
def _spread(row: Any, dim: Any, x: Any, mean: Any) -> None:
    """One part's rows to ``x``, in float32 and turned; and what is to be taken away of them to
    ``mean [heads · dim]``."""
    rows, tokens, apart, narrow, turned = row[6], row[7], row[8], row[10] != 0, row[1] != 0
    heads, floats = rows // tokens, np.empty(0, np.float32)
    size, angles = (heads - 1) * apart + tokens * dim, tokens * (dim // 2) if turned else 0
    wide = array_at(row[0], 0 if narrow else size, floats)
    short = array_at(row[0], size if narrow else 0, np.empty(0, np.uint16))
    cos, sin = array_at(row[1], angles, floats), array_at(row[2], angles, floats)
    whole, half, to = np.uint64(dim), np.uint64(dim // 2), np.uint64(0)
    for head in range(heads):
        for token in range(tokens):
            at = np.uint64(head * apart + token * dim)
            if narrow:
                for i in range(whole):
                    bits = np.uint32(short[at + i]) << np.uint32(16)
                    x[to + i] = np.uint32(bits).view(np.float32)
            else:
                for i in range(whole):
                    x[to + i] = wide[at + i]
            if turned:
                angle = np.uint64(token * (dim // 2))
                for i in range(half):
                    first, second = x[to + i], x[to + half + i]
                    x[to + i] = first * cos[angle + i] - second * sin[angle + i]
                    x[to + half + i] = second * cos[angle + i] + first * sin[angle + i]
            to += whole
    mean[: heads * dim] = np.float32(0)
    if row[3]:
        out = array_at(row[3], heads * (4 + dim), np.empty(0, np.uint8))
        _find_mean(x, heads, tokens, dim, out, mean)


@part
def _find_mean(x: Any, heads: Any, tokens: Any, dim: Any, out: Any, mean: Any) -> None:
    """As the decoder will see it: eight bits are enough, for what is taken away is exactly what is
    added again."""
    steps, codes = out[: 4 * heads].view(np.float32), out[4 * heads :].view(np.int8)
    total, at = np.empty(dim, np.float64), np.uint64(0)
    for head in range(heads):
        total[:] = 0.0
        for _ in range(tokens):
            for i in range(np.uint64(dim)):
                total[i] += x[at + i]
            at += np.uint64(dim)
        largest, own = np.float32(0), head * dim
        for i in range(dim):
            mean[own + i] = total[i] / tokens
            largest = max(largest, abs(mean[own + i]))
        step = max(largest / np.float32(127), np.float32(1e-30))
        steps[head] = step
        for i in range(dim):
            code = np.rint(mean[own + i] / step)
            codes[own + i] = np.int8(code)
            mean[own + i] = np.float32(code) * step


@part
def _mean_squares(x: Any, tokens: Any, dim: Any, mean: Any, out: Any) -> None:
    """Of all rows, after their mean is taken away in place."""
    whole, at = dim // SUMS * SUMS, 0
    for r in range(out.size):
        of = r // tokens * dim
        total = center(x, at, whole, mean, of)
        for i in range(whole, dim):
            x[at + i] -= mean[of + i]
            total += x[at + i] * x[at + i]
        out[r] = total / np.float32(dim)
        at += dim


@kernel
def _measure(table: Any, dim: Any, x: Any) -> None:
    """``x`` is room for the largest part."""
    for n in range(len(table)):
        row = table[n]
        rows, tokens = row[6], row[7]
        mean = np.empty(rows // tokens * dim, np.float32)
        _spread(row, dim, x, mean)
        _mean_squares(x, tokens, dim, mean, array_at(row[4], rows, x))


@kernel
def _encode(table: Any, matrix: Any, dim: Any, x: Any) -> None:
    """``matrix`` is the DCT over the odd part of ``dim``, ``x`` room for the largest part."""
    scales, root = np.empty(32, np.float32), dim // len(matrix)
    for n in range(len(table)):
        row = table[n]
        rows, tokens = row[6], row[7]
        mean, squares = np.empty(rows // tokens * dim, np.float32), np.empty(rows, np.float32)
        _spread(row, dim, x, mean)
        _mean_squares(x, tokens, dim, mean, squares)
        rotate(x, rows, dim, matrix)
        out = array_at(row[4], row[9], np.empty(0, np.uint8))
        widths, info = array_at(row[5], rows, out), out[2 : 2 + rows]
        top = _scale(x, dim, root, widths, squares, info)
        out[0], out[1] = np.uint8(top & 255), np.uint8((top >> 8) & 255)
        for s in range(32):
            scales[s] = UNIT / np.sqrt(root) / 2.0 ** ((top - 31 + s) / OCTAVE)
        code_rows(x, info, scales, dim, out[2 + rows :])


@part
def _scale(x: Any, dim: Any, root: Any, widths: Any, squares: Any, info: Any) -> Any:
    """The rows' bytes, from their mean squares; rows of ``x`` are rotated, ``root`` numbers
    together. Returns the largest exponent."""
    exponents, top = np.empty(info.size, np.int32), np.int32(LOWEST)
    least = 2.0 ** (2 * LOWEST / OCTAVE)
    for r in range(info.size):
        square = np.float64(squares[r])
        if widths[r] == 8:
            # Eight bits are spent on rows that must not be clipped.
            peak = np.float32(0)
            for i in range(r * dim, (r + 1) * dim):
                peak = max(peak, abs(x[i]))
            most = np.float64(peak) * (UNIT / np.sqrt(root) / _TOP)
            square = max(square, most * most)
        exact = np.log2(max(square, least)) * (OCTAVE / 2)
        exponents[r] = np.int32(np.ceil(exact) if widths[r] == 8 else np.rint(exact))
        top = max(top, exponents[r])
    for r in range(info.size):
        scale = max(exponents[r] - (top - 31), 0)
        info[r] = _TIER[widths[r]] | np.uint8(scale << 3)
    return top
