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

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..card.digest import Bytes
from ..card.errors import CardFormatError, CodecError
from ..kernels.reference import pack_planes, unpack_planes
from .base import Codec, LayerKV, Shape, require_bytes
from .bits import BitMap, Energy
from .levels import LEVELS, TOP, levels, thresholds
from .rotation import rotate, unrotate

TIERS = (0, 1, 2, 3, 4, 5, 6, 8)
# Below this the mean costs more than it brings.
MEAN_TOKENS = 64
OCTAVE = 3  # scales per factor of two
LOWEST, HIGHEST = -300, 384  # exponents: numbers of 2**-100 to 2**128


@dataclass(frozen=True)
class Packed(Codec):
    """Bits per number from 0 to 8, chosen for every row by an allocator."""

    name = "packed"
    tiers = TIERS
    distortion = (1.0, *(LEVELS[bits][2] for bits in TIERS[1:]))

    def energy(self, layer: LayerKV) -> Energy:
        """Mean squares; rotation does not change them."""
        keys = layer.keys.float()
        if keys.shape[1] >= MEAN_TOKENS:
            keys = keys - _mean(keys)[0]
        return Energy(keys.square().mean(-1), layer.values.float().square().mean(-1))

    def row_bits(self, dim: int, bits: int) -> int:
        """Codes fill whole bytes."""
        return _eights(dim) * bits

    def overhead(self, shape: Shape) -> int:
        """Bytes of a layer beside its codes."""
        return _mean_bytes(shape) + 2 * (2 + shape.kv_heads * shape.tokens)

    def encode(self, layers: Iterable[LayerKV], bits: BitMap | None = None) -> Iterator[Bytes]:
        """Means, then keys, then values. Raises `CodecError`."""
        if bits is None:
            raise CodecError("packed needs a bit map; capture with budget=.")
        for layer, widths in zip(layers, bits, strict=True):
            keys, parts = layer.keys.float(), []
            if keys.shape[1] >= MEAN_TOKENS:
                mean, blob = _mean(keys)
                keys = keys - mean
                parts.append(blob)
            parts += _encode_rows(keys, widths.keys)
            parts += _encode_rows(layer.values.float(), widths.values)
            yield np.concatenate([part.cpu().numpy() for part in parts])

    def decode(
        self, blobs: Iterable[Bytes], shapes: Sequence[Shape], dtype: torch.dtype
    ) -> Iterator[LayerKV]:
        """Level times scale, rotated back, plus mean: all in float32, then ``dtype``."""
        for blob, shape in zip(blobs, shapes, strict=True):
            at = _mean_bytes(shape)
            if blob.nbytes < self.overhead(shape):
                require_bytes(blob, self.overhead(shape), self)
            data = torch.from_numpy(blob)
            key_rows, at = _find_rows(data, at, shape.keys)
            value_rows, at = _find_rows(data, at, shape.values)
            require_bytes(blob, at, self)
            keys = _decode_rows(key_rows, shape.keys)
            if at_mean := _mean_bytes(shape):
                keys = keys + _read_mean(data[:at_mean], shape)
            values = _decode_rows(value_rows, shape.values)
            yield LayerKV(keys.to(dtype), values.to(dtype))

    def parts(self, shape: Shape, nbytes: int) -> dict[str, int]:
        """Of a row's byte three bits are map, five are scale."""
        overhead = self.overhead(shape)
        maps = 2 * shape.kv_heads * shape.tokens * 3 // 8
        return {"codes": nbytes - overhead, "scales": overhead - maps, "maps": maps}


def _eights(dim: int) -> int:
    return -(-dim // 8) * 8


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


def _read_mean(data: Tensor, shape: Shape) -> Tensor:
    split = 4 * shape.kv_heads
    step = data[:split].clone().view(torch.float32)
    codes = data[split:].view(torch.int8).view(shape.kv_heads, 1, shape.head_dim)
    return codes.float() * step[:, None, None]


def _encode_rows(part: Tensor, bits: Tensor) -> list[Tensor]:
    """Encode ``[kv_heads, tokens, dim]``: exponent, one byte a row, codes tier after tier."""
    rows = rotate(part).flatten(0, 1)
    widths = bits.flatten().to(rows.device)
    rms, peak = rows.square().mean(-1).sqrt(), rows.abs().amax(-1)
    # Eight bits are spent on rows that must not be clipped.
    rms = torch.where(widths == 8, torch.maximum(rms, peak / TOP), rms)
    exact = torch.log2(rms.clamp(min=2.0 ** (LOWEST / OCTAVE))) * OCTAVE
    exponent = torch.where(widths == 8, exact.ceil(), exact.round()).to(torch.int32)
    top = int(exponent.max())
    scale = (exponent - (top - 31)).clamp(min=0)
    unit = _units(top).to(rows.device)[scale]

    tier = torch.bucketize(widths, torch.tensor(TIERS, device=rows.device))
    head = torch.tensor([top], dtype=torch.int16).view(torch.uint8)
    blobs = [head.to(rows.device), (tier | scale << 3).to(torch.uint8)]
    for width in TIERS[1:]:
        mine = widths == width
        codes = torch.bucketize(rows[mine] / unit[mine, None], thresholds(width).to(rows.device))
        blobs.append(pack_planes(codes.to(torch.uint8), width).flatten())
    return blobs


def _units(top: int) -> Tensor:
    """The 32 scales up to exponent ``top``; a table, since vector units round exp2 freely."""
    return torch.tensor([2.0 ** ((top - 31 + scale) / OCTAVE) for scale in range(32)])


@dataclass(frozen=True)
class _Rows:
    """Where one part's rows lie: exponent, a byte ``[rows]``, and codes per tier."""

    top: int
    bytes: Tensor
    codes: dict[int, Tensor]


def _find_rows(data: Tensor, at: int, shape: tuple[int, int, int]) -> tuple[_Rows, int]:
    """Cut one part out of a layer's bytes; also where it ends. Raises `CardFormatError`."""
    heads, tokens, dim = shape
    top = int.from_bytes(data[at : at + 2].numpy().tobytes(), "little", signed=True)
    if not LOWEST <= top <= HIGHEST:
        raise CardFormatError(
            f"a layer encoded by 'packed' has exponent {top}, expected {LOWEST} to {HIGHEST}. "
            "The card is damaged or was assembled by hand."
        )
    info = data[at + 2 : at + 2 + heads * tokens]
    at += 2 + heads * tokens
    counts = torch.bincount(info & 7, minlength=8).tolist()
    codes = {}
    for width, count in zip(TIERS[1:], counts[1:], strict=True):
        size = count * _eights(dim) * width // 8
        if at + size > len(data):
            raise CardFormatError(
                f"a layer encoded by 'packed' has {len(data)} bytes, its shape needs more than "
                f"{at + size}. The card is damaged or was assembled by hand."
            )
        codes[width] = data[at : at + size].view(count, _eights(dim) * width // 8)
        at += size
    return _Rows(top, info, codes), at


def _decode_rows(rows: _Rows, shape: tuple[int, int, int]) -> Tensor:
    info = rows.bytes.int()
    unit = _units(rows.top)[info >> 3]
    out = torch.zeros(len(info), shape[2])
    for width, packed in rows.codes.items():
        mine = (info & 7) == TIERS.index(width)
        codes = unpack_planes(packed, width)[:, : shape[2]]
        out[mine] = levels(width)[codes.int()] * unit[mine, None]
    return unrotate(out).view(shape)
