"""The bit map: how many bits each row of keys and of values gets.

A *row* is what one token has in one KV head of one layer, ``head_dim`` numbers, once for keys and
once for values: the smallest thing that bits are given to.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class LayerBits:
    """Bits per number for one layer's rows: ``keys`` and ``values``, uint8 ``[kv_heads, tokens]``.

    Every entry is one of the codec's `Codec.tiers`.
    """

    keys: Tensor
    values: Tensor


BitMap = Sequence[LayerBits]


@dataclass(frozen=True)
class Energy:
    """Mean square of what a codec quantizes, float32 ``[kv_heads, tokens]``, per layer.

    With quantization error proportional to it, this is a row's share of the distortion.
    """

    keys: Tensor
    values: Tensor
