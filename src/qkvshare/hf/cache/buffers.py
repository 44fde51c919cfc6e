"""Memory of cache layers, and where in it a card's tokens are decoded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

from ...codecs import Codec, LayerKV, Shape, empty
from ..model.rotation import Rotation
from .pages import LARGE, pages


class Buffer(NamedTuple):
    """What one layer asks for."""

    shape: Shape
    dtype: torch.dtype
    device: torch.device

    @property
    def sizes(self) -> list[int]:
        """Bytes of keys and of values, in whole cache lines."""
        return [
            -(-prod(of) * self.dtype.itemsize // 64) * 64
            for of in (self.shape.keys, self.shape.values)
        ]


def allocate(layers: Sequence[Buffer]) -> list[LayerKV]:
    """Uninitialized memory for each layer. On the CPU, layers share large pages."""
    left = sum(sum(at.sizes) for at in layers if at.device.type == "cpu")
    pool, out = torch.empty(0, dtype=torch.uint8), list[LayerKV]()
    for at in layers:
        (shape, dtype, device), sizes, parts = at, at.sizes, list[Tensor]()
        if device.type == "cpu" and sum(sizes) > len(pool):
            pool = pages(max(sum(sizes), min(left, LARGE)))
        for nbytes, of in zip(sizes, (shape.keys, shape.values), strict=True):
            if device.type == "cpu":
                parts.append(pool[: prod(of) * dtype.itemsize].view(dtype).view(of))
                pool, left = pool[nbytes:], left - nbytes
            else:
                parts.append(torch.empty(of, dtype=dtype, device=device))
        out.append(LayerKV(*parts))
    return out


@dataclass(frozen=True)
class Target(LayerKV):
    """Where a codec decodes one layer of a run, and what happens to it afterwards.

    Attributes:
        buffer: where the numbers belong; None where no token of them is needed.
        rotation: brings the keys to their positions; None where they are there already.
        codec_rotates: whether the codec rotates keys itself, as far as it can.
    """

    buffer: LayerKV | None
    rotation: Rotation | None
    codec_rotates: bool

    @classmethod
    def of(
        cls,
        buffer: LayerKV | None,
        shape: Shape,
        dtype: torch.dtype,
        rotation: Rotation | None,
        codec: type[Codec],
    ) -> Target:
        """In the buffer, if ``codec`` decodes there. Raises `CardFormatError` without memory."""
        here = buffer
        if here is None or not codec.decodes_on(here.keys.device, shape):
            (here,) = empty([shape], dtype)
        return cls(here.keys, here.values, buffer, rotation, codec.rotates)

    @property
    def angles(self) -> tuple[Tensor, Tensor] | None:
        """What the codec rotates keys by."""
        return None if self.rotation is None or not self.codec_rotates else self.rotation.angles

    def settle(self) -> None:
        """Bring decoded numbers into the buffer, and keys to their positions."""
        if self.buffer is None:
            return
        if self.buffer.keys.device != self.keys.device:
            self.buffer.keys.copy_(self.keys)
            self.buffer.values.copy_(self.values)
        if self.rotation is not None and self.angles is None:
            self.rotation(self.buffer.keys)
