"""Which cache layers a card can carry, and their geometry."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from typing import Any, cast

from torch import Tensor
from transformers import Cache, DynamicCache, PreTrainedModel, cache_utils
from transformers.cache_utils import (
    DynamicIndexedLayer,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionLayer,
)

from ...card import Layer
from ...card.errors import CaptureError, UnsupportedModelError
from ...card.geometry import LayerKind
from ...codecs import LayerKV
from .coded import CodedLayer
from .compressed import compresses, grown
from .counting import CountingCache, states_alone
from .growing import FullLayer, HalfLayer, SlidingLayer, growing
from .indexer import IndexKeys, beside
from .own import own_class
from .states import STATE_AND_ATTENTION, growing_state

# Layers without anything of their own; older releases of transformers leave them out of the cache.
_NOTHING: Any = getattr(cache_utils, "DummyLayer", ())
_KINDS = (
    *(DynamicLayer, DynamicSlidingWindowLayer, FullLayer, SlidingLayer, HalfLayer, CodedLayer),
    *STATE_AND_ATTENTION,
)
_GROWABLE = (DynamicLayer, DynamicSlidingWindowLayer, DynamicIndexedLayer)


def empty_cache(model: PreTrainedModel) -> DynamicCache:
    """A fresh cache with the model's own layer kinds.

    Raises `UnsupportedModelError`, naming layer and kind, where a card cannot carry one.
    """
    try:
        # Without config= every layer would silently become full attention.
        cache: DynamicCache = own_class(model)(config=model.config)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UnsupportedModelError(
            f"transformers makes no cache for {type(model).__name__} ({error!r}). Hand over text "
            "instead."
        ) from error
    attention_numbers(cache)
    return CountingCache(model) if states_alone(cache) else cache


def attention_numbers(cache: Cache) -> list[int]:
    """Which of the cache's layers hold keys and values: a card has those, in this order.

    A layer that holds an indexer's keys, too, is there twice, once it has read a token. The others
    read what another layer holds, keep a state, or hold nothing, as cross-attention without a
    picture. Raises `UnsupportedModelError` where one holds something else.
    """
    if not isinstance(cache, DynamicCache):
        raise UnsupportedModelError(
            f"the cache is a {type(cache).__name__}; a card is captured from a DynamicCache, "
            "made with DynamicCache(config=model.config)."
        )
    out, layers = [], cast(list[Any], cache.layers)
    read = any(layer.is_initialized for layer in layers if _plain(layer))
    for number, layer in enumerate(layers):
        # Subclasses keep more than keys and values, or keep them in another form.
        if _plain(layer):
            out += [number] if layer.is_initialized or not read else []
        elif (name := beside(layer)) is not None:
            out += [number] if getattr(layer, name) is None else [number, number]
        elif type(layer) is not LinearAttentionLayer and not isinstance(layer, _NOTHING):
            raise UnsupportedModelError(
                f"layer {number} of the model is of kind {type(layer).__name__!r}; a card carries "
                "full and sliding-window attention and recurrent and convolution states, and "
                "leaving this layer out would give wrong text. Hand over text instead."
            )
    if not out and not states_alone(cache):
        raise UnsupportedModelError(
            "no layer of the model keeps keys, values or states, so there is nothing to carry. "
            "Hand over text instead."
        )
    return out


def _plain(layer: Any) -> bool:
    """Whether ``layer`` holds keys and values as layers of transformers do."""
    return type(layer) in _KINDS or compresses(layer)


def attention_layers(cache: Cache) -> list[DynamicLayer]:
    """The cache's layers that hold keys and values; codes as numbers. Raises as
    `attention_numbers`."""
    layers = numbered(cache, attention_numbers(cache))
    return [layer.plain() if isinstance(layer, CodedLayer) else layer for layer in layers]


def numbered(cache: Cache, numbers: Sequence[int]) -> list[Any]:
    """The layers of these `attention_numbers`; `IndexKeys` where a number comes the second time."""
    out: list[Any] = []
    for before, number in zip([-1, *numbers], numbers, strict=False):
        layer: Any = cache.layers[number]
        out.append(IndexKeys(layer) if before == number else layer)
    return out


def growing_layers(empty: Cache, numbers: Sequence[int]) -> list[Any]:
    """Those of an ``empty`` cache, in kinds that grow in place but for classes that a model adds;
    ``numbers`` are its `attention_numbers`."""
    layers: list[Any] = [copy(layer) for layer in empty.layers]
    for number, layer in enumerate(layers):
        if isinstance(layer, LinearAttentionLayer):
            layers[number] = growing_state(layer)
        elif compresses(layer):
            layers[number] = grown(layer)
        elif number in numbers and type(layer) in _GROWABLE:
            layers[number] = growing(layer)
    return layers


def window_of(layer: DynamicLayer) -> int | None:
    """Sliding window in tokens, the current one included; None for full attention."""
    return layer.sliding_window if isinstance(layer, DynamicSlidingWindowLayer) else None


def describe(number: int, layer: DynamicLayer) -> Layer:
    """Geometry of a filled cache layer. Raises `CaptureError` where it is empty."""
    if layer.keys is None or layer.values is None:
        raise CaptureError(f"layer {number} of the cache is empty; expected keys and values.")
    window = window_of(layer)
    if isinstance(layer, IndexKeys):
        kind: LayerKind = "indexer"
    else:
        kind = "full" if window is None else "sliding"
    return Layer(
        kind=kind,
        kv_heads=layer.keys.shape[1],
        head_dim=layer.keys.shape[3],
        v_head_dim=layer.values.shape[3],
        window=window,
    )


def attach(layer: Any, buffer: LayerKV, used: slice, seq_len: int) -> None:
    """As `FullLayer.attach`, to one of `growing_layers`, or to its `IndexKeys`."""
    if isinstance(layer, FullLayer | IndexKeys):
        layer.attach(buffer, used, seq_len)
    else:
        place_layer(layer, buffer.keys[:, used], buffer.values[:, used], seq_len)


def place_layer(layer: DynamicLayer, keys: Tensor, values: Tensor, seq_len: int) -> None:
    """Make ``[kv_heads, tokens, dim]`` the state of an empty layer that has seen ``seq_len``."""
    if seq_len == 0:
        return
    if isinstance(layer, IndexKeys):
        layer.attach(LayerKV(keys, values), slice(0, seq_len), seq_len)
        return
    layer.lazy_initialization(keys, values)
    layer.keys, layer.values = keys[None], values[None]
    if isinstance(layer, DynamicSlidingWindowLayer):
        layer.cumulative_length = seq_len  # masks and positions are computed from it
