"""``raw``: the cache bit for bit, in the model's own number format."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
import torch
from torch import Tensor

from ..card.digest import Bytes
from .base import Codec, LayerKV, Shape, require_bytes, roomy
from .bits import BitMap


@dataclass(frozen=True)
class Raw(Codec):
    """Keys (as cached, after RoPE), then values, row-major, little-endian. No parameters."""

    name = "raw"
    pre_rope = False  # un-rotating and rotating again would not be bit for bit

    def encode(self, layers: Iterable[LayerKV], bits: BitMap | None = None) -> Iterator[Bytes]:
        """Copy the bytes."""
        for layer in layers:
            yield np.concatenate([_bytes(layer.keys), _bytes(layer.values)])

    def decode(
        self,
        blobs: Iterable[Bytes],
        shapes: Sequence[Shape],
        dtype: torch.dtype,
        spare: int = 0,
    ) -> Iterator[LayerKV]:
        """Copy the bytes back; ``dtype`` is the one the cache was captured in."""
        for blob, shape in zip(blobs, shapes, strict=True):
            split = prod(shape.keys) * dtype.itemsize
            require_bytes(blob, split + prod(shape.values) * dtype.itemsize, self)
            keys = _tensor(blob[:split], dtype).reshape(shape.keys)
            values = _tensor(blob[split:], dtype).reshape(shape.values)
            yield LayerKV(roomy(keys, dtype, spare), roomy(values, dtype, spare))

    def parts(self, shape: Shape, nbytes: int) -> dict[str, int]:
        """Everything is codes."""
        return {"codes": nbytes}


def _bytes(tensor: Tensor) -> Bytes:
    flat: Bytes = tensor.contiguous().flatten().view(torch.uint8).cpu().numpy()
    return flat


def _tensor(data: Bytes, dtype: torch.dtype) -> Tensor:
    # The clone aligns the memory and detaches it from the card.
    return torch.from_numpy(data).clone().view(dtype)
