"""``raw``: the cache bit for bit, in the model's own number format."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..card.digest import Bytes
from .base import Codec, leave, require_bytes
from .finite import require_finite
from .layers import Into, LayerKV


@dataclass(frozen=True)
class Raw(Codec):
    """Keys (as cached, after RoPE), then values, row-major, little-endian. No parameters."""

    name = "raw"
    pre_rope = False  # un-rotating and rotating again would not be bit for bit
    lossless = True

    def encode(self, layers: Iterable[LayerKV]) -> Iterator[Bytes]:
        """Copy the bytes."""
        for layer in layers:
            yield np.concatenate([_bytes(layer.keys), _bytes(layer.values)])

    def decode(
        self, blobs: Iterable[Bytes], into: Iterable[Into], then: Callable[[Into], None] = leave
    ) -> Iterator[Into]:
        """Copy the bytes back, into the number format that the cache was captured in.

        Raises `CardFormatError`, also for numbers that are not finite.
        """
        for blob, layer in zip(blobs, into, strict=True):
            split = layer.keys.nbytes
            require_bytes(blob, split + layer.values.nbytes, self.name)
            for part, data in ((layer.keys, blob[:split]), (layer.values, blob[split:])):
                # The clone aligns the memory.
                numbers = torch.from_numpy(data).clone().view(part.dtype)
                require_finite(numbers, part.dtype, self.name)
                part.copy_(numbers.view(part.shape))
            then(layer)
            yield layer


def _bytes(tensor: Tensor) -> Bytes:
    flat: Bytes = tensor.contiguous().flatten().view(torch.uint8).cpu().numpy()
    return flat
