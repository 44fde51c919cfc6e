"""The cache that `inject` hands out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from math import prod
from typing import Any, cast

import torch
from torch import Tensor
from transformers import DynamicCache

from ...card import CacheCard
from ...codecs import Codec, LayerKV, Shape, empty
from ...kernels.pages import LARGE, pages
from .growing import growing
from .guard import GuardedCache


class CardCache(GuardedCache):
    """A ``DynamicCache`` that grows in place and remembers the card it began as.

    So `capture` can append to that card instead of encoding its tokens again, and knows that the
    first keys are the card's, which a lossy codec has changed; and `inject` can take them over.

    Attributes:
        card: what it was injected from.
        decoded: how many of the tokens that it holds are still as the card's bytes say.
    """

    def __init__(self, card: CacheCard, decoded: int, empty: DynamicCache) -> None:
        """With layers of the kinds that an ``empty`` one of the model has."""
        super().__init__()
        vars(self).update(vars(empty))
        self.layers: list[Any] = [growing(cast(Any, layer)) for layer in empty.layers]
        self.card, self.decoded = card, decoded

    def crop(self, *arguments: Any, **named: Any) -> None:
        """As ``DynamicCache.crop``; what is read again after it is not the card's any more."""
        super().crop(*arguments, **named)
        self.decoded = min(self.decoded, self.get_seq_length())


@dataclass(frozen=True)
class Place(LayerKV):
    """Where one layer of a run is decoded, and what is done to it then.

    Attributes:
        stays: where it stays; None where none of it is needed.
        turn: what brings its keys to their positions.
        turned: whether the codec does so on the way, where it can.
    """

    stays: LayerKV | None
    turn: Callable[[Tensor], Tensor] | None
    turned: bool

    @classmethod
    def of(
        cls,
        stays: LayerKV | None,
        shape: Shape,
        dtype: torch.dtype,
        turn: Callable[[Tensor], Tensor] | None,
        codec: type[Codec],
    ) -> Place:
        """There, if ``codec`` decodes there. Raises `CardFormatError` for too much memory."""
        here = stays
        if here is None or not codec.decodes_on(here.keys.device, shape):
            (here,) = empty([shape], dtype)
        return cls(here.keys, here.values, stays, turn, codec.rotates)

    @property
    def angles(self) -> tuple[Tensor, Tensor] | None:
        """Of its turn, where its keys are halves that turn as one."""
        return getattr(self.turn, "angles", None) if self.turned else None

    def settle(self) -> None:
        """Bring it to where it stays, and its keys to their positions."""
        if self.stays is None:
            return
        if self.stays.keys.device != self.keys.device:
            self.stays.keys.copy_(self.keys)
            self.stays.values.copy_(self.values)
        if self.turn is not None and self.angles is None:
            self.turn(self.stays.keys)


def rooms(
    shapes: Sequence[Shape], devices: Sequence[torch.device], dtypes: Sequence[torch.dtype]
) -> list[LayerKV]:
    """Memory for each layer on its device, not initialized."""
    sizes = [
        [prod(of) * dtype.itemsize for of in (at.keys, at.values)]
        for at, dtype in zip(shapes, dtypes, strict=True)
    ]
    space, at, out = torch.empty(0, dtype=torch.uint8), 0, list[LayerKV]()
    numbers = dict[torch.dtype, Tensor]()  # all of the space in each format
    coming = sum(map(_aligned, chain.from_iterable(sizes)))
    for shape, size, device, dtype in zip(shapes, sizes, devices, dtypes, strict=True):
        if device.type != "cpu":
            keys, values = (
                torch.empty(of, dtype=dtype, device=device) for of in (shape.keys, shape.values)
            )
            out.append(LayerKV(keys, values))
            continue
        both = sum(map(_aligned, size))
        if at + both > len(space):
            space, at = pages(max(both, min(coming, LARGE))), 0
            numbers.clear()
        if dtype not in numbers:
            numbers[dtype] = space[: len(space) // dtype.itemsize * dtype.itemsize].view(dtype)
        coming -= both
        parts = []
        for nbytes, of in zip(size, (shape.keys, shape.values), strict=True):
            _, tokens, dim = of
            parts.append(
                numbers[dtype].as_strided(of, (tokens * dim, dim, 1), at // dtype.itemsize)
            )
            at += _aligned(nbytes)
        out.append(LayerKV(*parts))
    return out


def _aligned(nbytes: int) -> int:
    """To whole cache lines."""
    return -(-nbytes // 64) * 64
