"""``kivi``: keys per channel, values per token (KIVI, arXiv:2402.02750).

Keys have a few channels with large values throughout; a group of 64 *tokens* of one channel has a
narrow range where a group of 64 channels of one token has not. KIVI keeps the newest tokens, which
do not fill a group, in full precision, because its cache grows. A card is complete, so here the
last group of keys is quantized too, with scales of its own: cheaper in bytes at every length.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from qkvshare.card.digest import Bytes
from qkvshare.codecs.base import leave, require_bytes
from qkvshare.codecs.layers import Into, LayerKV, Shape

from . import affine
from .uniform import Uniform


@dataclass(frozen=True)
class Kivi(Uniform):
    """``bits`` (2, 3, 4 or 8) for every value; ``uniform`` but for its keys."""

    name = "kivi"

    def encode(self, layers: Iterable[LayerKV]) -> Iterator[Bytes]:
        """Keys, a row being a channel; then values, a row being a token."""
        for layer in layers:
            channels = layer.keys.transpose(1, 2).flatten(0, 1)
            tokens = layer.values.transpose(0, 1).flatten(1)
            yield np.concatenate([affine.quantize(rows, self.bits) for rows in (channels, tokens)])

    def decode(
        self, blobs: Iterable[Bytes], into: Iterable[Into], then: Callable[[Into], None] = leave
    ) -> Iterator[Into]:
        """``minimum + code · step`` in float32, then the number format asked for."""
        for blob, layer in zip(blobs, into, strict=True):
            shape = layer.shape
            split = sum(self._key_sizes(shape))
            require_bytes(blob, split + sum(self._sizes(shape.values)), self.name)
            channels = shape.kv_heads * shape.head_dim
            dtype, length = layer.keys.dtype, shape.tokens
            keys = affine.dequantize(blob[:split], channels, length, self.bits, dtype, self.name)
            keys = keys.reshape(shape.kv_heads, shape.head_dim, shape.tokens).transpose(1, 2)
            layer.keys.copy_(keys)
            layer.values.copy_(self._part(blob[split:], shape.values, dtype))
            then(layer)
            yield layer

    def parts(self, shape: Shape, nbytes: int) -> dict[str, int]:
        """Minima and steps are scales."""
        scales = self._key_sizes(shape)[0] + self._sizes(shape.values)[0]
        return {"codes": nbytes - scales, "scales": scales}

    def _key_sizes(self, shape: Shape) -> tuple[int, int]:
        return affine.sizes(shape.kv_heads * shape.head_dim, shape.tokens, self.bits)
