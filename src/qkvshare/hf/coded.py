"""Layers that keep a card's codes, and are decoded each time they are read.

The cache of a long context then takes the card's bytes and the numbers of one layer. What is read
after the card is kept in full, as in any other layer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor

from ..card.digest import Bytes
from ..codecs import Codec, LayerKV, Shape
from .room import SPARE, FullLayer


@dataclass(frozen=True)
class Coded:
    """One layer of a run: its bytes, for tokens from ``start`` on, and what turns its keys."""

    codec: Codec
    blob: Bytes
    start: int
    shape: Shape
    turn: Callable[[Tensor], Tensor] | None


@dataclass
class Scratch:
    """Numbers of one layer at a time, for all layers of a cache."""

    dtype: torch.dtype
    rooms: dict[Any, LayerKV] = field(default_factory=dict)

    def room(self, shape: Shape, batch: int, device: torch.device) -> LayerKV:
        """``[batch, kv_heads, tokens, dim]``, two; what was there before is lost."""
        key = shape.kv_heads, shape.head_dim, shape.v_head_dim, batch, device
        if key not in self.rooms or self.rooms[key].keys.shape[2] < shape.tokens:
            self.rooms.clear()
            more = Shape(shape.kv_heads, shape.tokens + SPARE, shape.head_dim, shape.v_head_dim)
            parts = (
                torch.empty(batch, *of, dtype=self.dtype, device=device)
                for of in (more.keys, more.values)
            )
            self.rooms[key] = LayerKV(*parts)
        room = self.rooms[key]
        return LayerKV(room.keys[:, :, : shape.tokens], room.values[:, :, : shape.tokens])


class CodedLayer(FullLayer):  # type: ignore[no-untyped-call]
    """Full attention over a card's ``kept`` tokens, as codes, and those after them, as numbers."""

    def __init__(self, parts: Sequence[Coded], kept: int, scratch: Scratch, device: torch.device):
        """``parts`` follow each other from token 0."""
        super().__init__()
        self._parts, self._kept, self._scratch = tuple(parts), kept, scratch
        shape = parts[0].shape
        self.dtype, self.device, self.is_initialized = scratch.dtype, device, True
        self.keys, self.values = (
            torch.empty(1, shape.kv_heads, 0, dim, dtype=scratch.dtype, device=device)
            for dim in (shape.head_dim, shape.v_head_dim)
        )

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """As `FullLayer.update`. What comes out is valid until the next layer is read."""
        super().update(key_states, value_states, *args, **kwargs)
        whole = self._whole()
        return whole.keys, whole.values

    def plain(self) -> FullLayer:
        """A layer of the same tokens, all of them numbers and its own."""
        whole, layer = self._whole(), FullLayer()
        layer.update(whole.keys, whole.values)
        return layer

    def _whole(self) -> LayerKV:
        """All tokens as numbers ``[batch, kv_heads, tokens, dim]``, in the scratch."""
        keys, values = cast(Tensor, self.keys), cast(Tensor, self.values)
        batch, heads, added, _ = keys.shape
        dims = keys.shape[3], values.shape[3]
        known = sum(part.shape.tokens for part in self._parts)
        shape = Shape(heads, max(known, self._kept + added), *dims)
        room = self._scratch.room(shape, batch, keys.device)
        for part in self._parts:
            _decode(part, room)
        for number, tail in ((room.keys, keys), (room.values, values)):
            number[1:, :, : self._kept] = number[:1, :, : self._kept]
            number[:, :, self._kept : self._kept + added] = tail
        end = self._kept + added
        return LayerKV(room.keys[:, :, :end], room.values[:, :, :end])

    def get_seq_length(self) -> int:
        """Tokens, coded or not."""
        return self._kept + (0 if self.keys is None else self.keys.shape[2])

    def crop(self, tokens_to_remove: int) -> None:
        """As ``DynamicLayer.crop``, and on into the codes, of which all stay."""
        added = cast(Tensor, self.keys).shape[2]
        if -tokens_to_remove > added:
            self._kept += tokens_to_remove + added
            tokens_to_remove = -added
        super().crop(tokens_to_remove)

    def reset(self) -> None:
        """Forget everything."""
        super().reset()
        self._parts, self._kept = (), 0


def _decode(part: Coded, room: LayerKV) -> None:
    """To the first sequence of ``room``."""
    at = slice(part.start, part.start + part.shape.tokens)
    there = LayerKV(room.keys[0, :, at], room.values[0, :, at])
    here = there
    if there.keys.device.type != "cpu":
        shape, dtype = part.shape, there.keys.dtype
        here = LayerKV(*(torch.empty(of, dtype=dtype) for of in (shape.keys, shape.values)))
    for _ in part.codec.decode([part.blob], [here]):
        pass
    if here is not there:
        there.keys.copy_(here.keys)
        there.values.copy_(here.values)
    if part.turn is not None:
        part.turn(there.keys)
