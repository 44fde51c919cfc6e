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

from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from threading import Lock
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from ..card.digest import Bytes
from ..card.errors import CodecError
from ..kernels.attention import Piece
from ..kernels.cuda import fits
from ..kernels.levels import DISTORTION, TIERS
from ..kernels.reference import eights
from ..scoring import Scorer
from . import packed_cpu, packed_torch
from .ahead import ahead
from .base import ENCODER_ONLY, BitCounts, leave
from .kinds import Attended
from .layers import Into, LayerKV, RotatedKV, Shape
from .packed_cpu import READ_AS_IT_IS, has_kernels
from .packed_layout import PackedLayout, overhead, require_dims
from .tiered import Allocator, BitMap, Energy, LayerBits, Tiered

# Half-precision parts are encoded from a float32 copy; those of two layers, where layers are copies
# themselves, would be too much.
_ONE_AT_A_TIME = Lock()
# Rows of a layer's keys: two layers at once only get in each other's way when they are small.
_WORTH_THREADS = 8192

T = TypeVar("T")


@dataclass(frozen=True)
class Packed(Tiered, Attended):
    """Bits per number from 0 to 8, chosen for every row by an allocator.

    Attributes:
        scorer: tells which tokens later queries look at; None for capture's default.
        allocator: chooses the bits; None for capture's default. The manifest names both in the
            segment's allocation, so they are no parameters of the bytes.
    """

    scorer: Scorer | None = field(default=None, metadata=ENCODER_ONLY)
    allocator: Allocator | None = field(default=None, metadata=ENCODER_ONLY)

    name = "packed"
    version = 2
    tiers = TIERS
    distortion = DISTORTION
    rotates = True
    background = True

    def energies(self, layers: Iterable[LayerKV]) -> list[Energy]:
        """Mean squares; rotation does not change them."""
        some = list(layers)
        if all(map(has_kernels, some)):
            return packed_cpu.energies(some)
        return list(map(packed_torch.energy, some))

    def row_bits(self, dim: int, bits: int) -> int:
        """Codes fill whole bytes."""
        return eights(dim) * bits

    def overhead(self, shape: Shape) -> int:
        """Bytes of a layer beside its codes."""
        return overhead(shape)

    def encode(self, layers: Iterable[LayerKV], bits: BitMap | None = None) -> Iterator[Bytes]:
        """Means, then keys, then values. Raises `CodecError`."""
        if bits is None:
            raise CodecError("packed needs a bit map; capture with bits=.")
        if isinstance(layers, list) and all(
            has_kernels(layer) and layer.keys.dtype in READ_AS_IT_IS for layer in layers
        ):
            pairs = list(zip(layers, bits, strict=True))
            for layer, widths in pairs:
                _require_encodable(layer.shape, widths)
            yield from packed_cpu.encode(pairs, min(2, torch.get_num_threads()))
            return
        large = any(part.keys.numel() >= _WORTH_THREADS for part in bits)
        run = ahead if large else map
        yield from run(lambda one: self._encode(*one), zip(layers, bits, strict=True))

    def _encode(self, layer: LayerKV, widths: LayerBits) -> Bytes:
        _require_encodable(layer.shape, widths)
        with nullcontext() if layer.keys.dtype == torch.float32 else _ONE_AT_A_TIME:
            if has_kernels(layer):
                return packed_cpu.encode([(layer, widths)])[0]
            parts = packed_torch.encode(layer, widths)
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
        if on_cpu:
            yield from packed_cpu.decode(pairs, then, into if isinstance(into, list) else None)
            return
        from . import packed_cuda  # needs Triton

        yield from packed_cuda.decode(pairs, then)

    def codes(
        self, blob: Bytes, shape: Shape, angles: tuple[Tensor, Tensor] | None
    ) -> Piece | None:
        """Addresses in ``blob``, which is kept."""
        keys, values = (torch.empty(of, device="meta") for of in (shape.keys, shape.values))
        return Piece.of(packed_cpu.opened([(blob, RotatedKV(keys, values, angles))], []))

    def check(self, blobs: Iterable[Bytes], shapes: Iterable[Shape], dtype: torch.dtype) -> None:
        """Mostly without decoding."""
        for blob, shape in zip(blobs, shapes, strict=True):
            if not PackedLayout.of(blob, shape).tame(shape, dtype):
                super().check([blob], [shape], dtype)

    @classmethod
    def decodes_on(cls, device: torch.device, shape: Shape) -> bool:
        """On a GPU where there are kernels."""
        there = device.type == "cuda" and fits(shape.head_dim) and fits(shape.v_head_dim)
        return device.type == "cpu" or there

    def parts(self, shape: Shape, nbytes: int) -> dict[str, int]:
        """Of a row's byte three bits are map, five are scale."""
        maps = 2 * shape.kv_heads * shape.tokens * 3 // 8
        beside = overhead(shape)
        return {"codes": nbytes - beside, "scales": beside - maps, "maps": maps}

    def token_bits(self, blob: Bytes, shape: Shape) -> tuple[BitCounts, BitCounts]:
        """Each row says its width."""
        return PackedLayout.of(blob, shape).token_bits(shape)


def _require_encodable(shape: Shape, widths: LayerBits) -> None:
    """Raise `CodecError` for a shape, or widths, that cannot be encoded."""
    require_dims(shape, CodecError)
    for kind, of in (("keys", widths.keys), ("values", widths.values)):
        if of.shape != (shape.kv_heads, shape.tokens):
            raise CodecError(
                f"the bit map has {tuple(of.shape)} rows of {kind}, the layer has "
                f"{(shape.kv_heads, shape.tokens)}. Give each row of the layer its bits."
            )
        other = of[~torch.isin(of, torch.tensor(TIERS, dtype=of.dtype, device=of.device))]
        if other.numel():
            raise CodecError(
                f"the bit map gives {int(other[0])} bits to a row of {kind}; 'packed' has {TIERS}."
            )


def _again(first: T, others: Iterator[T]) -> Iterator[T]:
    """All of an iterator whose ``first`` was taken; unlike `itertools.chain` it holds nothing."""
    yield first
    del first
    yield from others
