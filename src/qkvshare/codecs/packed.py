"""``packed``: rotated rows on Gaussian levels, with bits of their own for every row.

Needs no calibration. Keys are taken before RoPE and their mean over the tokens is removed; rows are
rotated, scaled to unit variance and put on the levels nearest to them. Rotation with Lloyd-Max
levels is TurboQuant's quantizer without its residual stage (arXiv:2504.19874); what is added here
is a width for each row (token, head, keys or values) and the removal of the keys' mean, which
pre-RoPE holds most of their outlier channels' energy.

One byte a row holds both its width (3 bits) and its scale (5 bits, a third of an octave apart).
Rows of one width lie together, so every inner loop has one width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import lru_cache
from threading import Lock
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..card.digest import Bytes
from ..card.errors import CardFormatError, CodecError, QKVShareError
from ..kernels.ahead import ahead
from ..kernels.cuda import fits
from ..kernels.levels import DISTORTION, TIERS, UNIT, levels
from ..kernels.operators import decode_arrays, encode_rows
from ..kernels.reference import eights
from ..kernels.rotation import power_of_two, rotate
from .base import Codec, Into, LayerKV, Shape, leave, require_bytes
from .bits import BitMap, Energy, LayerBits

# Below this the mean costs more than it brings.
MEAN_TOKENS = 8
OCTAVE = 3  # scales per factor of two
# Half-precision parts are encoded from a float32 copy; those of two layers would be too much.
_ONE_AT_A_TIME = Lock()
# Rows of a layer's keys: two layers at once only get in each other's way when they are small.
_WORTH_THREADS = 8192
# Numbers of a job when decoding: threads that come back for less wait for each other.
_WORTH_A_JOB = 1 << 21
_WIDTHS = np.array(TIERS, np.uint8)
LOWEST, HIGHEST = -300, 384  # exponents: numbers of 2**-100 to 2**128
# Head dims: rotating has work and memory of its own that grow with them, a DCT's with the square of
# the odd factor, and a row of 0 bits takes a byte whatever it stands for.
MOST_DIM, MOST_ODD = 4096, 255

Floats = npt.NDArray[np.float32]
T = TypeVar("T")


@dataclass(frozen=True)
class Packed(Codec):
    """Bits per number from 0 to 8, chosen for every row by an allocator."""

    name = "packed"
    version = 2
    tiers = TIERS
    distortion = DISTORTION

    def energy(self, layer: LayerKV) -> Energy:
        """Mean squares; rotation does not change them."""
        keys = layer.keys.float()
        if keys.shape[1] >= MEAN_TOKENS:
            keys = keys - _mean(keys)[0]
        return Energy(keys.square().mean(-1), layer.values.float().square().mean(-1))

    def row_bits(self, dim: int, bits: int) -> int:
        """Codes fill whole bytes."""
        return eights(dim) * bits

    def overhead(self, shape: Shape) -> int:
        """Bytes of a layer beside its codes."""
        return _mean_bytes(shape) + 2 * (2 + shape.kv_heads * shape.tokens)

    def encode(self, layers: Iterable[LayerKV], bits: BitMap | None = None) -> Iterator[Bytes]:
        """Means, then keys, then values. Raises `CodecError`."""
        if bits is None:
            raise CodecError("packed needs a bit map; capture with budget=.")
        large = any(part.keys.numel() >= _WORTH_THREADS for part in bits)
        run = ahead if large else map
        yield from run(lambda one: self._encode(*one), zip(layers, bits, strict=True))

    def _encode(self, layer: LayerKV, widths: LayerBits) -> Bytes:
        _require_dims(layer.shape, CodecError)
        with nullcontext() if layer.keys.dtype == torch.float32 else _ONE_AT_A_TIME:
            parts = _encode_keys(layer.keys, widths.keys)
            parts += _encode_rows(layer.values.float(), widths.values)
        return np.concatenate([part.cpu().numpy() for part in parts])

    def decode(
        self, blobs: Iterable[Bytes], into: Iterable[Into], then: Callable[[Into], None] = leave
    ) -> Iterator[Into]:
        """Level times scale, rotated back, plus mean: all in float32, then as asked for."""

        pairs: Iterator[tuple[Bytes, Into]] = zip(blobs, into, strict=True)
        first = next(pairs, None)
        if first is None:
            return
        on_cpu, pairs = first[1].keys.device.type == "cpu", _again(first, pairs)
        del first  # nothing is held that the caller has let go
        if not on_cpu:
            from .packed_cuda import decode

            yield from decode(self, pairs, then)
            return

        def work(job: list[tuple[Bytes, Into]]) -> list[Into]:
            for blob, layer in job:
                self.decode_layer(blob, layer)
                then(layer)
            return [layer for _, layer in job]

        for done in ahead(work, _together(pairs, _WORTH_A_JOB)):
            while done:  # nothing is held that the caller has let go
                yield done.pop(0)

    def decode_layer(self, blob: Bytes, layer: LayerKV) -> None:
        """One layer, on the caller's thread."""
        if layer.keys.device.type != "cpu":
            from .packed_cuda import decode

            list(decode(self, [(blob, layer)], leave))
            return
        found = self.open(blob, layer.shape)
        found.keys.decode(found.mean, layer.keys)
        found.values.decode(_nothing(layer.shape.kv_heads, layer.shape.v_head_dim), layer.values)

    def open(self, blob: Bytes, shape: Shape) -> Layout:
        """Where all lies in ``blob``. Raises `CardFormatError`."""
        _require_dims(shape, CardFormatError)
        at = _mean_bytes(shape)
        if blob.nbytes < self.overhead(shape):
            require_bytes(blob, self.overhead(shape), self)
        keys, end = _find_rows(blob, at, shape.keys)
        values, end = _find_rows(blob, end, shape.values)
        require_bytes(blob, end, self)
        return Layout(at, _read_mean(blob[:at], shape), keys, values)

    @classmethod
    def decodes_on(cls, device: torch.device, shape: Shape) -> bool:
        """On a GPU where there are kernels."""
        there = device.type == "cuda" and fits(shape.head_dim) and fits(shape.v_head_dim)
        return device.type == "cpu" or there

    def parts(self, shape: Shape, nbytes: int) -> dict[str, int]:
        """Of a row's byte three bits are map, five are scale."""
        overhead = self.overhead(shape)
        maps = 2 * shape.kv_heads * shape.tokens * 3 // 8
        return {"codes": nbytes - overhead, "scales": overhead - maps, "maps": maps}


def _require_dims(shape: Shape, error: type[QKVShareError]) -> None:
    for dim in (shape.head_dim, shape.v_head_dim):
        if dim > MOST_DIM or dim // power_of_two(dim) > MOST_ODD:
            raise error(
                f"'packed' has no rotation for rows of {dim} numbers; expected at most {MOST_DIM}, "
                f"with an odd factor of at most {MOST_ODD}. Use another codec for this model."
            )


def _mean_bytes(shape: Shape) -> int:
    return shape.kv_heads * (4 + shape.head_dim) if shape.tokens >= MEAN_TOKENS else 0


def _mean(keys: Tensor) -> tuple[Tensor, Tensor]:
    """The mean ``[kv_heads, 1, head_dim]`` as the decoder will see it, and its bytes.

    Eight bits are enough: what is subtracted is exactly what is added again.
    """
    mean = keys.mean(1)
    step = (mean.abs().amax(-1, keepdim=True) / 127).clamp(min=1e-30)
    codes = (mean / step).round().to(torch.int8)
    blob = torch.cat(
        [step.contiguous().view(torch.uint8).flatten(), codes.view(torch.uint8).flatten()]
    )
    return (codes.float() * step)[:, None], blob


def _read_mean(data: Bytes, shape: Shape) -> Floats:
    """``[kv_heads, head_dim]``; of a few tokens none was taken away."""
    if data.nbytes == 0:
        return _nothing(shape.kv_heads, shape.head_dim)
    split = 4 * shape.kv_heads
    step = data[:split].copy().view(np.float32)
    codes = data[split:].view(np.int8).reshape(shape.kv_heads, shape.head_dim)
    return codes * step[:, None]


@lru_cache(maxsize=16)  # a process sees few geometries, and cards must not fill its memory
def _nothing(heads: int, dim: int) -> Floats:
    return np.zeros((heads, dim), np.float32)


def _encode_keys(keys: Tensor, bits: Tensor) -> list[Tensor]:
    """Mean and rows; of a few tokens no mean."""
    rows = keys.float()
    if rows.shape[1] < MEAN_TOKENS:
        return _encode_rows(rows, bits)
    mean, blob = _mean(rows)
    # A copy made on the way can be used up; the caller's numbers cannot.
    rows = rows - mean if rows is keys else rows.sub_(mean)
    return [blob, *_encode_rows(rows, bits)]


def _encode_rows(part: Tensor, bits: Tensor) -> list[Tensor]:
    """Encode ``[kv_heads, tokens, dim]``: exponent, one byte a row, codes tier after tier."""
    rows = part.flatten(0, 1)
    widths = bits.flatten().to(rows.device)
    rms = torch.linalg.vector_norm(rows, dim=-1) / math.sqrt(rows.shape[1])
    # Eight bits are spent on rows that must not be clipped.
    wide = widths == 8
    root = math.sqrt(power_of_two(rows.shape[1]))
    peak = rotate(rows[wide]).abs().amax(-1) * (UNIT / root / levels(8)[-1].item())
    rms[wide] = torch.maximum(rms[wide], peak)
    exact = torch.log2(rms.clamp(min=2.0 ** (LOWEST / OCTAVE))) * OCTAVE
    exponent = torch.where(wide, exact.ceil(), exact.round()).to(torch.int32)
    top = int(exponent.max())
    scale = (exponent - (top - 31)).clamp(min=0)

    tier = torch.bucketize(widths, torch.tensor(TIERS, device=rows.device))
    info = (tier | scale << 3).to(torch.uint8)
    head = torch.tensor([top], dtype=torch.int16).view(torch.uint8)
    nbytes = int(widths.sum()) * eights(rows.shape[1]) // 8
    inverse = torch.tensor([UNIT / root / unit for unit in _units(top)], device=rows.device)
    return [head.to(rows.device), info, encode_rows(rows, info, inverse, nbytes)]


def _units(top: int) -> list[float]:
    """The 32 scales up to exponent ``top``, as multiples of a row's mean square root."""
    return [2.0 ** ((top - 31 + scale) / OCTAVE) for scale in range(32)]


@lru_cache(maxsize=4096)
def _scales(top: int, dim: int) -> Floats:
    """What the levels of rows of ``dim`` numbers are multiplied with, ``[32]``."""
    root = math.sqrt(power_of_two(dim))
    return np.array([unit / (UNIT * root) for unit in _units(top)], np.float32)


@dataclass(frozen=True)
class _Rows:
    """One part's rows as they lie: exponent, a byte ``[rows]``, and codes."""

    top: int
    info: Bytes
    codes: Bytes

    def decode(self, mean: Floats, out: Tensor) -> None:
        """Into ``out [kv_heads, tokens, dim]``, ``mean [kv_heads, dim]`` added."""
        decode_arrays(self.codes, self.info, _scales(self.top, out.shape[2]), mean, out)


@dataclass(frozen=True)
class Layout:
    """A layer's bytes: mean ``[kv_heads, head_dim]``, from ``start`` on rows of keys, of values."""

    start: int
    mean: Floats
    keys: _Rows
    values: _Rows


def _find_rows(data: Bytes, at: int, shape: tuple[int, int, int]) -> tuple[_Rows, int]:
    """Cut one part out of a layer's bytes; also where it ends. Raises `CardFormatError`."""
    heads, tokens, dim = shape
    top = int.from_bytes(data[at : at + 2].tobytes(), "little", signed=True)
    if not LOWEST <= top <= HIGHEST:
        raise CardFormatError(
            f"a layer encoded by 'packed' has exponent {top}, expected {LOWEST} to {HIGHEST}. "
            "The card is damaged or was assembled by hand."
        )
    info = data[at + 2 : at + 2 + heads * tokens]
    at += 2 + heads * tokens
    bits = int(_WIDTHS[info & 7].sum(dtype=np.int64))
    end = at + bits * eights(dim) // 8
    if end > data.nbytes:
        raise CardFormatError(
            f"a layer encoded by 'packed' has {data.nbytes} bytes, its shape needs at least {end}. "
            "The card is damaged or was assembled by hand."
        )
    return _Rows(top, info, data[at:end]), end


def _again(first: T, others: Iterator[T]) -> Iterator[T]:
    """All of an iterator whose ``first`` was taken; unlike `itertools.chain` it holds nothing."""
    yield first
    del first
    yield from others


def _together(
    layers: Iterable[tuple[Bytes, Into]], worth: int
) -> Iterator[list[tuple[Bytes, Into]]]:
    """Layers in jobs of at least ``worth`` numbers, but for the last."""
    job, size = list[tuple[Bytes, Into]](), 0
    for blob, layer in layers:
        job.append((blob, layer))
        size += layer.keys.numel() + layer.values.numel()
        if size >= worth:
            yield job
            job, size = [], 0
    if job:
        yield job
