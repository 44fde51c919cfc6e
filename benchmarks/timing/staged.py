"""Routes for a GPU: a card whose codes wait in pinned memory, or on the GPU itself.

On a processor they are the same routes without a copy, so that they can be tested.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from qkvshare.card import CacheCard
from qkvshare.card.container import ids_name
from qkvshare.card.errors import CodecError
from qkvshare.codecs import LayerKV, Packed, Shape, dtype_of, shapes_of
from qkvshare.hf.cache.buffers import Buffer, Target, allocate
from qkvshare.hf.cache.card_cache import CardCache
from qkvshare.hf.cache.growing import STEP
from qkvshare.hf.cache.layers import empty_cache
from qkvshare.hf.cache.observe import observe
from qkvshare.hf.capture.state import State
from qkvshare.hf.model.rope import Rope
from qkvshare.kernels.parts import Part

from .cards import Card


def _pinned(data: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """``data`` where a GPU can fetch it by itself; as it is where there is none."""
    return torch.from_numpy(data).pin_memory().numpy() if torch.cuda.is_available() else data


class CardPinned(Card):
    """A card in memory that the GPU fetches by itself; checked, decoded, injected."""

    name = "card-pinned"

    def ready(self, state: State | None) -> None:
        """Read it, and put it there."""
        super().ready(state)
        assert self.card is not None
        ids = {ids_name(number) for number in range(len(self.card.manifest.segments))}
        tensors = {
            name: data if name in ids else _pinned(data) for name, data in self.card.tensors.items()
        }
        self.card = CacheCard(self.card.manifest, tensors)


@dataclass
class CardStaged(Card):
    """A card whose codes are on the GPU, checked when they came there; decoded, injected.

    For models with full attention, and cards of `Packed` in one segment.
    """

    name = "card-gpu"
    _parts: list[Part] = field(default_factory=list, init=False)

    def ready(self, state: State | None) -> None:
        """Read it, check it, put it there. Raises `CodecError` for other cards."""
        from qkvshare.codecs.copies import Copies
        from qkvshare.codecs.packed_cuda import send
        from qkvshare.codecs.packed_layout import PackedLayout

        super().ready(state)
        assert self.card is not None
        (run,) = self.card.manifest.runs
        if run.codec.name != Packed.name or any(at.window for at in self.card.manifest.layers):
            raise CodecError(f"path {self.name!r} takes full attention and 'packed' only.")
        way, job = Copies(self.model.device), []
        for shape, blob in zip(shapes_of(self.card, run), self.card.blobs(0), strict=True):
            keys, values = (torch.empty(at, device="meta") for at in (shape.keys, shape.values))
            job.append((PackedLayout.of(blob, shape), blob, LayerKV(keys, values)))
        self._parts = send(job, way)
        way.arrived()

    def arguments(self) -> dict[str, Any]:
        """One launch for a kind of part, and two that find where rows lie."""
        from qkvshare.kernels.cuda_decode import decode_parts

        assert self.card is not None
        tokens, dtype = self.card.tokens, dtype_of(self.card)
        known = self.card.manifest.layers
        cache = CardCache(self.card, tokens, empty_cache(self.model), observe(self.model).numbers)
        device = self.model.device
        buffers = allocate([Buffer(Shape.of(at, tokens + STEP), dtype, device) for at in known])
        rope, positions, parts, targets = Rope(self.model, range(len(known))), range(tokens), [], []
        for number, buffer in enumerate(buffers):
            here = LayerKV(buffer.keys[:, :tokens], buffer.values[:, :tokens])
            rotation = rope.rotation(number, positions, buffer.keys.shape[2], device)
            target = Target.of(here, here.shape, dtype, rotation, Packed)
            keys, values = self._parts[2 * number : 2 * number + 2]
            parts.append(replace(keys, numbers=target.keys, angles=target.angles))
            parts.append(replace(values, numbers=target.values))
            targets.append(target)
            cache.layers[number].attach(buffer, slice(0, tokens), tokens)
        decode_parts(parts)
        for target in targets:
            target.settle()
        return self._with(cache, self.new)
