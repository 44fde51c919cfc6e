"""Where all lies in the bytes of a layer that ``packed`` has encoded.

The keys' mean, of each head a step and a byte a number; then for keys, and for values: an exponent
(two bytes), a byte a row, and codes, rows of one width after another.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Self

import numpy as np
import numpy.typing as npt
import torch

from ..card.digest import Bytes
from ..card.errors import CardFormatError, QKVShareError
from ..kernels.decode import widths
from ..kernels.levels import LOWEST, OCTAVE, TIERS, UNIT, levels
from ..kernels.reference import eights
from ..kernels.rotation import power_of_two
from .base import BitCounts, alike, damaged, require_bytes
from .finite import MOST, most, not_finite
from .layers import Shape

MEAN_TOKENS = 8  # below this the mean costs more than it brings
HIGHEST = 384  # exponents: numbers of 2**-100 to 2**128
# Head dims: rotating has work and memory of its own that grow with them, a DCT's with the square of
# the odd factor, and a row of 0 bits takes a byte whatever it stands for.
MOST_DIM, MOST_ODD = 4096, 255
_WIDTHS = np.array(TIERS, np.float32)

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Rows:
    """One part's rows as they lie: the largest exponent, a byte ``[rows]``, and codes."""

    top: int
    info: Bytes
    codes: Bytes


@dataclass(frozen=True)
class PackedLayout:
    """A layer's bytes: mean ``[kv_heads, head_dim]``, None of a few tokens, with no magnitude above
    ``largest``; from ``start`` on rows of keys, and of values."""

    start: int
    mean: Floats | None
    largest: float
    keys: Rows
    values: Rows

    @classmethod
    def of(cls, blob: Bytes, shape: Shape) -> Self:
        """Find them. Raises `CardFormatError`, also for a mean that is not finite."""
        require_dims(shape, CardFormatError)
        if blob.nbytes < overhead(shape):
            require_bytes(blob, overhead(shape), "packed")
        start = mean_bytes(shape)
        keys, end = _find_rows(blob, start, shape.keys)
        values, end = _find_rows(blob, end, shape.values)
        mean, largest = _read_mean(blob[:start], shape)
        require_bytes(blob, end, "packed")
        return cls(start, mean, largest, keys, values)

    def tame(self, shape: Shape, dtype: torch.dtype) -> bool:
        """Whether ``dtype`` has all the numbers, whatever the codes are; the exponents mostly tell.

        Keys may be rotated on the way, which makes them larger.
        """
        keys = 4 * (_largest(self.keys.top, shape.head_dim) + self.largest)
        return max(keys, _largest(self.values.top, shape.v_head_dim)) <= most(dtype)

    def token_bits(self, shape: Shape) -> tuple[BitCounts, BitCounts]:
        """A row's byte and codes are its token's; mean and exponents are shared by all tokens."""

        def bits(rows: Rows, dim: int, common: int) -> BitCounts:
            own = 8 + eights(dim) * _WIDTHS[rows.info & 7].reshape(shape.kv_heads, shape.tokens)
            found: BitCounts = own.sum(0) + alike(common, shape)
            return found

        keys = bits(self.keys, shape.head_dim, self.start + 2)
        return keys, bits(self.values, shape.v_head_dim, 2)


def require_dims(shape: Shape, error: type[QKVShareError]) -> None:
    """Raise ``error`` for head dims that `packed` does not rotate."""
    for dim in (shape.head_dim, shape.v_head_dim):
        if dim > MOST_DIM or dim // power_of_two(dim) > MOST_ODD:
            raise error(
                f"'packed' has no rotation for rows of {dim} numbers; expected at most {MOST_DIM}, "
                f"with an odd factor of at most {MOST_ODD}. Use another codec for this model."
            )


def overhead(shape: Shape) -> int:
    """Bytes of a layer beside its codes."""
    return mean_bytes(shape) + 2 * (2 + shape.kv_heads * shape.tokens)


def mean_bytes(shape: Shape) -> int:
    """Of the keys' mean."""
    return shape.kv_heads * (4 + shape.head_dim) if shape.tokens >= MEAN_TOKENS else 0


def _read_mean(data: Bytes, shape: Shape) -> tuple[Floats | None, float]:
    """``[kv_heads, head_dim]``, and a bound; of a few tokens none was taken away."""
    if data.nbytes == 0:
        return None, 0.0
    split = 4 * shape.kv_heads
    step = data[:split].copy().view(np.float32)
    steps = step.tolist()
    if not all(-MOST <= each <= MOST for each in steps):  # nor where it is no number
        raise not_finite("packed", torch.float32)
    codes = data[split:].view(np.int8).reshape(shape.kv_heads, shape.head_dim)
    return codes * step[:, None], 128 * max(map(abs, steps))


def units(top: int) -> list[float]:
    """The 32 scales up to exponent ``top``, as multiples of a row's mean square root."""
    return [2.0 ** ((top - 31 + scale) / OCTAVE) for scale in range(32)]


@lru_cache(maxsize=4096)
def scales(top: int, dim: int) -> Floats:
    """What the levels of rows of ``dim`` numbers up to exponent ``top`` are multiplied with."""
    root = np.sqrt(power_of_two(dim))
    return np.array([unit / (UNIT * root) for unit in units(top)], np.float32)


@lru_cache(maxsize=4096)
def _largest(top: int, dim: int) -> float:
    """No number of rows up to exponent ``top`` is larger: all levels the largest, of one sign."""
    level = float(levels(8)[-1]) / UNIT
    return float(2.0 ** (top / OCTAVE) * level * np.sqrt(dim))


def _find_rows(data: Bytes, at: int, shape: tuple[int, int, int]) -> tuple[Rows, int]:
    """Cut one part out of a layer's bytes; also where it ends. Raises `CardFormatError`."""
    heads, tokens, dim = shape
    top = int.from_bytes(data[at : at + 2].tobytes(), "little", signed=True)
    if not LOWEST <= top <= HIGHEST:
        raise damaged("packed", f"exponent {top}, expected {LOWEST} to {HIGHEST}")
    info = data[at + 2 : at + 2 + heads * tokens]
    at += 2 + heads * tokens
    end = at + widths(info) * eights(dim) // 8
    if end > data.nbytes:
        raise damaged("packed", f"{data.nbytes} bytes, its shape needs at least {end}")
    return Rows(top, info, data[at:end]), end
