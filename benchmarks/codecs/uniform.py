"""``uniform``: per-token asymmetric round-to-nearest, the baseline that others ship.

The scheme of transformers' ``QuantizedCache`` and of the Q4 prompt stores (for example "Agent
Memory Below the Prompt", arXiv:2603.04428): every token's keys, and values, are cut into groups of
64; each group stores its minimum and its step in float16, so ``bits`` bits cost ``bits + 0.5``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch

from qkvshare.card.digest import Bytes
from qkvshare.codecs.base import BitCounts, Codec, alike, leave, require_bytes
from qkvshare.codecs.layers import Into, LayerKV, Shape

from . import affine


@dataclass(frozen=True)
class Uniform(Codec):
    """``bits`` (2, 3, 4 or 8) for every value, whatever the token."""

    bits: int = 8

    name = "uniform"
    pre_rope = False  # as the systems it stands for: keys as the cache holds them

    def __post_init__(self) -> None:
        """Refuse widths that nobody packs."""
        affine.require_width(self.bits, self.name)

    def encode(self, layers: Iterable[LayerKV]) -> Iterator[Bytes]:
        """Keys, then values; a row is a token, its heads side by side."""
        for layer in layers:
            parts = (part.transpose(0, 1).flatten(1) for part in (layer.keys, layer.values))
            yield np.concatenate([affine.quantize(rows, self.bits) for rows in parts])

    def decode(
        self, blobs: Iterable[Bytes], into: Iterable[Into], then: Callable[[Into], None] = leave
    ) -> Iterator[Into]:
        """``minimum + code · step`` in float32, then the number format asked for."""
        for blob, layer in zip(blobs, into, strict=True):
            shape = layer.shape
            split = sum(self._sizes(shape.keys))
            require_bytes(blob, split + sum(self._sizes(shape.values)), self.name)
            layer.keys.copy_(self._part(blob[:split], shape.keys, layer.keys.dtype))
            layer.values.copy_(self._part(blob[split:], shape.values, layer.values.dtype))
            then(layer)
            yield layer

    def parts(self, shape: Shape, nbytes: int) -> dict[str, int]:
        """Minima and steps are scales."""
        scales = self._sizes(shape.keys)[0] + self._sizes(shape.values)[0]
        return {"codes": nbytes - scales, "scales": scales}

    def token_bits(self, blob: Bytes, shape: Shape) -> tuple[BitCounts, BitCounts]:
        """What values need is known; keys have the rest."""
        values = min(sum(self._sizes(shape.values)), blob.nbytes)
        return alike(blob.nbytes - values, shape), alike(values, shape)

    def narrower(self) -> Self | None:
        """The next width below."""
        bits = affine.next_width(self.bits)
        return None if bits is None else type(self)(bits)

    def _sizes(self, shape: tuple[int, int, int]) -> tuple[int, int]:
        heads, tokens, dim = shape
        return affine.sizes(tokens, heads * dim, self.bits)

    def _part(self, blob: Bytes, shape: tuple[int, int, int], dtype: torch.dtype) -> torch.Tensor:
        heads, tokens, dim = shape
        rows = affine.dequantize(blob, tokens, heads * dim, self.bits, dtype, self.name)
        return rows.reshape(tokens, heads, dim).transpose(0, 1)
