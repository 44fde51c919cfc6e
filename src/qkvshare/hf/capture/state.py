"""The state of one sequence: what a model has made of token ids, checked."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cached_property
from typing import cast

import torch
from msgspec import structs
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from ...card import CacheCard, Layer, StateTensor
from ...card.digest import TokenIds
from ...card.errors import CaptureError, IdentityError, UnsupportedModelError
from ...codecs import Codec, LayerKV, RotatedKV
from ...scoring import Scorer
from ..cache.growing import HalfLayer
from ..cache.layers import (
    describe,
    numbered,
    place_layer,
)
from ..cache.observe import observe, require_geometry
from ..cache.states import put_states
from ..model.rope import Rope


@dataclass(frozen=True)
class State:
    """The keys and values that ``model`` made of ``ids``, one `LayerKV` a layer, as cached.

    A sliding layer holds its last tokens only; the last one cached is always the last of ``ids``.
    ``card`` is the card whose tokens come first, where the cache was injected from one. ``scores``
    is what scorers said while the model read ``ids``, ``[kv_heads, tokens]`` a layer.

    ``snapshot`` has the recurrent and convolution states before the last token was read, and
    ``final`` those after it; none where the model keeps none.
    """

    model: PreTrainedModel
    ids: TokenIds
    layers: list[Layer]
    cached: list[LayerKV]
    card: CacheCard | None = None
    scores: Mapping[Scorer, list[Tensor]] = field(default_factory=dict)
    snapshot: list[Tensor] = field(default_factory=list)
    final: list[Tensor] = field(default_factory=list)

    @property
    def states(self) -> list[StateTensor]:
        """What ``snapshot`` and ``final`` are of."""
        return observe(self.model).states

    @cached_property
    def _rope(self) -> Rope:
        return Rope(self.model, observe(self.model).numbers)

    def first(self, number: int) -> int:
        """The first token that layer ``number`` still holds."""
        return len(self.ids) - self.cached[number].keys.shape[1]

    def cache(self) -> DynamicCache:
        """A cache to go on from, over the same memory: what it grows by is its own."""
        cache = deepcopy(observe(self.model).empty)
        known = len(self.ids)
        for slot, cached, layer in zip(
            numbered(cache, observe(self.model).numbers), self.cached, self.layers, strict=True
        ):
            keep = min(known, cached.keys.shape[1], (layer.window or known + 1) - 1)
            skip = cached.keys.shape[1] - keep
            place_layer(slot, cached.keys[:, skip:], cached.values[:, skip:], known)
        put_states(cache, self.states, [tensor.clone() for tensor in self.final], known)
        return cache

    def layer(self, number: int, start: int, pre_rope: bool) -> LayerKV:
        """Layer ``number`` from ``start`` (or the first cached) on, keys before RoPE if asked."""
        skip = max(0, start - self.first(number))
        keys, values = self.cached[number].keys[:, skip:], self.cached[number].values[:, skip:]
        if pre_rope and not self.layers[number].placed:
            positions = range(self.first(number) + skip, len(self.ids))
            keys = self._rope.unrotate(number, keys, positions)
        return LayerKV(keys, values)

    def for_codec(self, codec: Codec, start: int) -> Iterable[LayerKV]:
        """All layers from ``start`` (or the first cached) on, as ``codec`` takes them: a list where
        that makes no copies."""
        numbers = range(len(self.layers))
        angles = [self._inverse_angles(at, start) for at in numbers] if codec.rotates else [None]
        if None in angles:
            return (self.layer(number, start, codec.pre_rope) for number in numbers)
        layers = (self.layer(number, start, False) for number in numbers)
        return [RotatedKV(at.keys, at.values, by) for at, by in zip(layers, angles, strict=True)]

    def _inverse_angles(self, number: int, start: int) -> tuple[Tensor, Tensor] | None:
        """The angles that take a layer's keys back to before RoPE, where a codec can."""
        keys = self.cached[number].keys
        if keys.device.type != "cpu" or self.layers[number].placed:
            return None
        positions = range(max(start, self.first(number)), len(self.ids))
        rotation = self._rope.rotation(number, positions, keys.shape[2], keys.device, back=True)
        return None if rotation is None else rotation.angles


def state_of(
    model: PreTrainedModel,
    slots: list[DynamicLayer],
    row: int,
    ids: TokenIds,
    real: Tensor | None,
    length: int,
) -> State:
    """Row ``row`` of the layers of a cache that has seen ``length`` tokens, padding included.

    ``real [length]`` says which are no padding; None where all are. Raises `CaptureError`, and
    `UnsupportedModelError` where `inject` could not give such layers to the model again.
    """
    layers, cached = [], []
    own = observe(model).layers
    for number, slot in enumerate(slots):
        layer = describe(number, slot)
        if number < len(own):
            layer = structs.replace(layer, placed=own[number].placed)
            if layer.window is None and own[number].window is not None:
                # Of a DynamicCache made without config=: it holds all tokens, the model slides.
                layer = structs.replace(layer, kind="sliding", window=own[number].window)
        if (seen := slot.get_seq_length()) != length:
            raise CaptureError(
                f"layer {number} of the cache holds {seen} tokens, expected {length}: tokens were "
                "dropped from it or added to it. A card needs every token in every layer; capture "
                "the token ids instead, which reads them."
            )
        keys, values = (cast(Tensor, part)[row] for part in (slot.keys, slot.values))
        dtype = torch.bfloat16 if isinstance(slot, HalfLayer) else model.dtype
        if not keys.dtype == values.dtype == dtype:
            raise CaptureError(
                f"layer {number} of the cache is in {keys.dtype}, the model in {model.dtype}; "
                f"expected {dtype}. Make the cache without autocast."
            )
        if real is not None and not real.all():
            keep = real[len(real) - keys.shape[1] :].to(keys.device)
            keys, values = keys[:, keep], values[:, keep]
        # A window of w tokens looks back on w - 1; one more lets the last token be read again.
        count = min(keys.shape[1], len(ids), layer.window or len(ids))
        needed = min(len(ids), (layer.window or len(ids) + 1) - 1)
        if count < needed:
            raise CaptureError(
                f"layer {number} holds {count} of the {needed} tokens that it must; padding has "
                f"pushed the others out of its window of {layer.window}. Pad on the left."
            )
        start = keys.shape[1] - count
        layers.append(layer)
        cached.append(LayerKV(keys[:, start:], values[:, start:]))
        _require_finite(number, cached[-1])
    try:
        require_geometry(model, layers, observe(model).states)
    except IdentityError as error:
        raise UnsupportedModelError(f"no card of this cache could be injected: {error}") from error
    return State(model, ids, layers, cached)


def _require_finite(number: int, cached: LayerKV) -> None:
    for name, part in (("keys", cached.keys), ("values", cached.values)):
        # A single pass, and NaN is carried over.
        if part.numel() and not torch.isfinite(torch.stack(part.aminmax())).all():
            raise CaptureError(
                f"the {name} of layer {number} contain NaN or infinity; expected finite "
                "numbers. The model overflowed: load it in bfloat16 or float32."
            )
