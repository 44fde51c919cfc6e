"""Layers that keep a card's codes.

The cache of a long context then takes the card's bytes. Attention `qkvshare` reads them as they
are, where there is a kernel; for all else a layer is decoded each time that it is read, into memory
for two. What comes after the card is kept in full, as in any other layer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Self, cast

import torch
from torch import Tensor

from ...card.digest import Bytes
from ...card.errors import UnsupportedModelError
from ...codecs import Attended, Codec, LayerKV, Shape
from ...kernels.ahead import beside
from ...kernels.cpu_coded import Codes, Piece
from ..attention import NAME
from .card_cache import Place
from .growing import SPARE, FullLayer


@dataclass(frozen=True)
class Coded:
    """One layer of a run: its bytes, for tokens from ``start`` on, and what turns its keys."""

    codec: Codec
    blob: Bytes
    start: int
    shape: Shape
    turn: Callable[[Tensor], Tensor] | None

    @cached_property
    def piece(self) -> Piece | None:
        """What attention reads; None where there is no kernel that does."""
        angles = getattr(self.turn, "angles", None)
        if not isinstance(self.codec, Attended) or (self.turn is not None and angles is None):
            return None
        return self.codec.codes(self.blob, self.shape, angles)

    def decode(self, room: LayerKV) -> None:
        """To the first sequence of ``room [batch, kv_heads, tokens, dim]``."""
        at = slice(self.start, self.start + self.shape.tokens)
        there = LayerKV(room.keys[0, :, at], room.values[0, :, at])
        place = Place.of(there, self.shape, there.keys.dtype, self.turn, type(self.codec))
        self.codec.decode_layer(self.blob, place)
        place.settle()


@dataclass
class Scratch:
    """The numbers of two layers, for all layers of a cache in turn.

    While one is decoded the next one is too, on another thread: afterwards the model needs both.

    Attributes:
        config: of the model; it names the attention function, which may change.
        layers: what each layer has as codes.
        rooms: memory of layers of even and of odd number.
        coming: the layer that is being decoded ahead of its time, and where.
        handed: the layer whose codes attention was given and has not read.
    """

    dtype: torch.dtype
    device: torch.device
    config: Any = None
    layers: list[tuple[Coded, ...]] = field(default_factory=list)
    rooms: dict[int, LayerKV] = field(default_factory=dict)
    coming: tuple[int, LayerKV, Future[None]] | None = None
    handed: int | None = None

    def __deepcopy__(self, _: object) -> Self:
        """Codes are never changed, and numbers are made anew."""
        return type(self)(self.dtype, self.device, self.config, self.layers)

    def hand(self, number: int) -> None:
        """Attention is given codes. Raises `UnsupportedModelError` if it did not read the last."""
        if self.handed is not None and number > 0:
            raise UnsupportedModelError(
                f"the attention of layer {self.handed} did not read the codes that it was given: "
                "the model does not call attention 'qkvshare' with what its cache returns. Use "
                "kv_format='model', or another attention function."
            )
        self.handed = number

    @property
    def nbytes(self) -> int:
        """Of memory."""
        return sum(room.keys.nbytes + room.values.nbytes for room in self.rooms.values())

    def read(self, number: int, batch: int, tokens: int) -> LayerKV:
        """Layer ``number`` in the first of ``batch`` sequences with room for ``tokens``, each."""
        ahead, self.coming = self.coming, None
        if ahead is not None:
            ahead[2].result()
        room = self._room(number, batch, tokens)
        if ahead is not None and ahead[0] == number and ahead[1] is room:
            return room
        if number % 2 == 0 and number + 1 < len(self.layers) and torch.get_num_threads() > 1:
            other = self._room(number + 1, batch, tokens)
            self.coming = number + 1, other, beside(self._decode, number + 1, other)
        self._decode(number, room)
        return room

    def _decode(self, number: int, room: LayerKV) -> None:
        for part in self.layers[number]:
            part.decode(room)

    def _room(self, number: int, batch: int, tokens: int) -> LayerKV:
        shape, room = self.layers[number][0].shape, self.rooms.get(number % 2)
        sizes = [(batch, shape.kv_heads, dim) for dim in (shape.head_dim, shape.v_head_dim)]
        has = (
            []
            if room is None
            else [(*of.shape[:2], of.shape[3]) for of in (room.keys, room.values)]
        )
        if room is None or has != sizes or room.keys.shape[2] < tokens:
            with torch.inference_mode(False):  # so that it can be written outside of it, too
                parts = [
                    torch.empty(
                        rows, heads, tokens + SPARE, dim, dtype=self.dtype, device=self.device
                    )
                    for rows, heads, dim in sizes
                ]
            room = self.rooms[number % 2] = LayerKV(*parts)
        return room


class CodedLayer(FullLayer):  # type: ignore[no-untyped-call]
    """Full attention over a card's ``kept`` tokens, as codes, and those after them, as numbers."""

    def __init__(self, parts: Sequence[Coded], kept: int, scratch: Scratch) -> None:
        """``parts`` follow each other from token 0; their numbers come to be in ``scratch``."""
        super().__init__()
        self._parts, self._kept, self.scratch = tuple(parts), kept, scratch
        self._codes: Codes | None = None
        self._number = len(scratch.layers)
        scratch.layers.append(self._parts)
        shape = parts[0].shape
        self.dtype, self.device, self.is_initialized = scratch.dtype, scratch.device, True
        self.keys, self.values = (
            torch.empty(1, shape.kv_heads, 0, dim, dtype=self.dtype, device=self.device)
            for dim in (shape.head_dim, shape.v_head_dim)
        )

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """As `FullLayer.update`. What comes out is valid until other layers are read."""
        super().update(key_states, value_states, *args, **kwargs)
        if not self._parts:  # it was reset
            return self._tails
        if self._reads_codes():
            self.scratch.hand(self._number)
            self._tails[0].coded = self  # type: ignore[attr-defined]
            return self._tails
        return self.numbers()

    def _reads_codes(self) -> bool:
        """Whether the attention function is ours, and has kernels."""
        config = self.scratch.config
        ours = getattr(config, "_attn_implementation", None) == NAME
        plain = self.dtype == torch.float32 and self.device.type == "cpu"
        return ours and plain and all(at.piece for at in self._parts)

    def numbers(self) -> tuple[Tensor, Tensor]:
        """All keys and values, decoded; valid until other layers are read."""
        self.scratch.handed = None
        whole = self._whole()
        return whole.keys, whole.values

    def codes(self) -> Codes:
        """For attention: those of the tokens before the keys and values that are numbers."""
        self.scratch.handed = None
        if self._codes is None or self._codes.tokens != self._kept:
            pieces = [piece for at in self._parts if (piece := at.piece) is not None]
            self._codes = Codes.of(pieces, self._kept)
        return self._codes

    @property
    def kept(self) -> int:
        """Tokens that are codes."""
        return self._kept

    def plain(self) -> FullLayer:
        """A layer of the same tokens, all of them numbers and its own."""
        layer = FullLayer()
        if not self.is_initialized:  # it was reset
            return layer
        whole = self._whole() if self._parts else LayerKV(*self._tails)
        layer.update(whole.keys, whole.values)
        return layer

    @property
    def _tails(self) -> tuple[Tensor, Tensor]:
        return cast(Tensor, self.keys), cast(Tensor, self.values)

    @property
    def nbytes(self) -> int:
        """Of codes, and of the numbers behind them; without the scratch, which layers share."""
        tails = sum(tail.nbytes for tail in self._tails)
        return tails + sum(part.blob.nbytes for part in self._parts)

    def _whole(self) -> LayerKV:
        """All tokens as numbers ``[batch, kv_heads, tokens, dim]``, in the scratch."""
        keys, values = self._tails
        batch, added = keys.shape[0], keys.shape[2]
        known, end = sum(part.shape.tokens for part in self._parts), self._kept + added
        room = self.scratch.read(self._number, batch, max(known, end))
        for number, tail in ((room.keys, keys), (room.values, values)):
            number[1:, :, : self._kept] = number[:1, :, : self._kept]
            number[:, :, self._kept : end] = tail
        return LayerKV(room.keys[:, :, :end], room.values[:, :, :end])

    def get_seq_length(self) -> int:
        """Tokens, coded or not."""
        return self._kept + (0 if self.keys is None else self.keys.shape[2])

    def crop(self, tokens_to_remove: int) -> None:
        """As ``DynamicLayer.crop``, and on into the codes, of which all stay."""
        if not self.is_initialized:
            return
        added = self._tails[0].shape[2]
        if -tokens_to_remove > added:
            self._kept += tokens_to_remove + added
            tokens_to_remove = -added
        super().crop(tokens_to_remove)

    def reset(self) -> None:
        """Forget everything."""
        super().reset()
        self._parts, self._kept = (), 0
