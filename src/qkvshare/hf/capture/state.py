"""The state of one sequence: what a model has made of token ids, checked."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import cast

import torch
from msgspec import structs
from torch import Tensor
from transformers import Cache, DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from ...card import CacheCard, Layer
from ...card.digest import TokenIds
from ...card.errors import CancelledError, CaptureError, IdentityError, UnsupportedModelError
from ...codecs import Codec, LayerKV, RotatedKV
from ...scoring import Scorer
from ..cache.growing import HalfLayer
from ..cache.layers import (
    attention_layers,
    describe,
    empty_cache,
    place_layer,
)
from ..cache.observe import observe, require_geometry
from ..model.rope import Rope
from ..model.text_only import forget_positions
from ..text.tokens import Ids, as_ids, require_length, require_vocabulary
from .probe import Watch, can_watch_reading, watched

_PIECE = 512  # tokens read at once, between which a caller can call it off


@dataclass(frozen=True)
class State:
    """The keys and values that ``model`` made of ``ids``, one `LayerKV` a layer, as cached.

    A sliding layer holds its last tokens only; the last one cached is always the last of ``ids``.
    ``card`` is the card whose tokens come first, where the cache was injected from one. ``scores``
    is what scorers said while the model read ``ids``, ``[kv_heads, tokens]`` a layer.
    """

    model: PreTrainedModel
    ids: TokenIds
    layers: list[Layer]
    cached: list[LayerKV]
    card: CacheCard | None = None
    scores: Mapping[Scorer, list[Tensor]] = field(default_factory=dict)

    @cached_property
    def _rope(self) -> Rope:
        return Rope(self.model, observe(self.model).numbers)

    def first(self, number: int) -> int:
        """The first token that layer ``number`` still holds."""
        return len(self.ids) - self.cached[number].keys.shape[1]

    def cache(self) -> DynamicCache:
        """A cache to go on from, over the same memory: what it grows by is its own."""
        cache = empty_cache(self.model)
        known = len(self.ids)
        for slot, cached, layer in zip(
            attention_layers(cache), self.cached, self.layers, strict=True
        ):
            keep = min(known, cached.keys.shape[1], (layer.window or known + 1) - 1)
            skip = cached.keys.shape[1] - keep
            place_layer(slot, cached.keys[:, skip:], cached.values[:, skip:], known)
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


def read(model: PreTrainedModel, token_ids: Ids, scorers: Sequence[Scorer] = ()) -> State:
    """Prefill ``token_ids``, asking ``scorers`` on the way where the model can be watched.

    Raises `CaptureError` or `PromptError`.
    """
    ids = as_ids(token_ids)
    require_context(model, ids)
    forget_positions(model)
    windows = [layer.window for layer in observe(model).layers if layer.window]
    cache = empty_cache(model)
    # A full window would forget the token that an exact hit needs, see `inject`.
    if windows and len(ids) >= min(windows):
        cache.activate_past_recording()  # type: ignore[no-untyped-call]
    tokens = torch.from_numpy(ids).long()[None].to(model.device)
    asked = [scorer for scorer in scorers if len(scorer.probes(len(ids))) and not scorer.rereads]
    watch = Watch(model, asked if can_watch_reading(model) else ())
    with torch.no_grad(), watched(model, watch) if watch.scorers else nullcontext():
        # One row of logits: the vocabulary projection of the others would be thrown away.
        model(input_ids=tokens, past_key_values=cache, use_cache=True, logits_to_keep=1)
    state = state_of(model, attention_layers(cache), 0, ids, None, len(ids))
    seen = {scorer: list(layers.values()) for scorer, layers in watch.scores.items()}
    whole = {scorer: scores for scorer, scores in seen.items() if len(scores) == len(state.cached)}
    return replace(state, scores=whole)


def complete(
    model: PreTrainedModel,
    cache: Cache,
    ids: Ids,
    cancelled: Callable[[], bool] = lambda: False,
) -> None:
    """Let ``model`` read those of ``ids`` that ``cache`` lacks, so that it has all of them.

    After ``generate`` that is the last sampled token: it was returned, and never read. ``ids`` are
    of the whole context, ``[tokens]`` or ``[1, tokens]``. ``cancelled`` is asked before each 512
    tokens, and at the end. Raises `PromptError` for more than one sequence, and `CancelledError`.
    """
    rest = torch.from_numpy(as_ids(ids)[cache.get_seq_length() :]).long()[None]
    for piece in rest.to(model.device).split(_PIECE, dim=1):  # type: ignore[no-untyped-call]
        if cancelled():
            break
        if piece.shape[1]:
            with torch.no_grad():
                model(input_ids=piece, past_key_values=cache, use_cache=True, logits_to_keep=1)
    if cancelled():
        raise CancelledError("reading was called off.")


def require_context(model: PreTrainedModel, ids: TokenIds) -> None:
    """Raise `CaptureError` or `PromptError` for a context that no model can read."""
    if len(ids) == 0:
        raise CaptureError("the context is empty; expected at least one token.")
    require_vocabulary(model, ids, "context")
    require_length(model, len(ids))


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
        require_geometry(model, layers)
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
