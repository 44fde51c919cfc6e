"""Which cache layers a card can carry, and their geometry."""

from __future__ import annotations

from typing import cast
from weakref import WeakKeyDictionary

from torch import Tensor, nn
from transformers import Cache, DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from ...card import Layer
from ...card.errors import CaptureError, IdentityError, UnsupportedModelError
from ..model.config import text_config
from .coded import CodedLayer
from .growing import FullLayer, HalfLayer, SlidingLayer

_PLAIN = DynamicLayer, DynamicSlidingWindowLayer
_KINDS = (*_PLAIN, FullLayer, SlidingLayer, HalfLayer, CodedLayer)
_CONFIG_KINDS = {"full_attention", "sliding_attention"}

_empty: WeakKeyDictionary[nn.Module, tuple[str, DynamicCache]] = WeakKeyDictionary()


def empty_cache(model: PreTrainedModel) -> DynamicCache:
    """A fresh cache with the model's own layer kinds.

    Raises `UnsupportedModelError`, naming layer and kind, where a card cannot carry one.
    """
    _require_kinds(model)
    # Without config= every layer would silently become full attention.
    cache = DynamicCache(config=model.config)
    _carried(cache)
    return cache


def attention_layers(model: PreTrainedModel, cache: Cache) -> list[DynamicLayer]:
    """The cache's layers, all of them full or sliding-window attention; codes as numbers.

    Raises `UnsupportedModelError` where one is not.
    """
    _require_kinds(model)
    if not isinstance(cache, DynamicCache):
        raise UnsupportedModelError(
            f"the cache is a {type(cache).__name__}; a card is captured from a DynamicCache, "
            "made with DynamicCache(config=model.config)."
        )
    return _carried(cache)


def _carried(cache: DynamicCache) -> list[DynamicLayer]:
    for number, layer in enumerate(cache.layers):
        # Subclasses keep more than keys and values, or keep them in another form.
        if type(layer) not in _KINDS:
            _refuse(number, type(layer).__name__)
    layers = cast(list[DynamicLayer], cache.layers)
    return [layer.plain() if isinstance(layer, CodedLayer) else layer for layer in layers]


def _require_kinds(model: PreTrainedModel) -> None:
    config = text_config(model)
    for number, kind in enumerate(getattr(config, "layer_types", None) or []):
        if kind not in _CONFIG_KINDS:
            _refuse(number, kind)
    # Older releases of transformers give such layers no place in the cache at all.
    shared = getattr(config, "num_kv_shared_layers", None)
    if shared:
        _refuse(config.num_hidden_layers - shared, "keys and values of another layer")


def _refuse(number: int, kind: str) -> None:
    raise UnsupportedModelError(
        f"layer {number} of the model is of kind {kind!r}; a card carries full and sliding-window "
        "attention only, and leaving this layer out would give wrong text. Hand over text instead."
    )


def window_of(layer: DynamicLayer) -> int | None:
    """Sliding window in tokens, the current one included; None for full attention."""
    return layer.sliding_window if isinstance(layer, DynamicSlidingWindowLayer) else None


def describe(number: int, layer: DynamicLayer) -> Layer:
    """Geometry of a filled cache layer. Raises `CaptureError` where it is empty."""
    if layer.keys is None or layer.values is None:
        raise CaptureError(f"layer {number} of the cache is empty; expected keys and values.")
    window = window_of(layer)
    return Layer(
        kind="full" if window is None else "sliding",
        kv_heads=layer.keys.shape[1],
        head_dim=layer.keys.shape[3],
        v_head_dim=layer.values.shape[3],
        window=window,
    )


def require_geometry(model: PreTrainedModel, layers: list[Layer]) -> DynamicCache:
    """An empty cache of the model, to be left empty: the next caller may get the same. Raises
    `IdentityError` unless its layers are ``layers``, a card's, and `UnsupportedModelError` as
    `empty_cache`."""
    cache, own = _own(model), own_layers(model)
    if len(layers) != len(own):
        raise IdentityError(f"the card has {len(layers)} layers, the model {len(own)}.")
    config = text_config(model)
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    v_dim = getattr(config, "v_head_dim", None) or dim
    for number, (layer, mine) in enumerate(zip(layers, own, strict=True)):
        found = layer.window, layer.kv_heads, layer.head_dim, layer.v_head_dim
        expected = window_of(mine), heads, dim, v_dim
        if found != expected:
            raise IdentityError(
                f"layer {number} (window, KV heads, head dims of keys and values): the card has "
                f"{found}, the model {expected}."
            )
    return cache


def own_layers(model: PreTrainedModel) -> list[DynamicLayer]:
    """Empty layers of the model's kinds, to be left empty. Raises as `empty_cache`."""
    return _carried(_own(model))


def _own(model: PreTrainedModel) -> DynamicCache:
    # To make one takes longer than to see that the configuration says what it said.
    says, known = repr(vars(text_config(model))), _empty.get(model)
    if known is None or known[0] != says:
        known = _empty[model] = says, empty_cache(model)
    return known[1]


def place_layer(layer: DynamicLayer, keys: Tensor, values: Tensor, seq_len: int) -> None:
    """Make ``[kv_heads, tokens, dim]`` the state of an empty layer that has seen ``seq_len``."""
    if seq_len == 0:
        return
    layer.lazy_initialization(keys, values)
    layer.keys, layer.values = keys[None], values[None]
    if isinstance(layer, DynamicSlidingWindowLayer):
        layer.cumulative_length = seq_len  # masks and positions are computed from it
