"""Caches of other classes that a card can be captured from."""

from __future__ import annotations

from typing import Any, cast

from transformers import Cache, PreTrainedModel, QuantizedCache, StaticCache
from transformers.cache_utils import StaticLayer, StaticSlidingWindowLayer

from .layers import empty_cache


def as_dynamic(model: PreTrainedModel, cache: Cache) -> Cache | None:
    """What ``cache`` holds, in a ``DynamicCache`` over the same memory if it is a ``StaticCache``.

    None where the numbers are not those that the model computed (``QuantizedCache``), or where a
    layer holds more than keys and values: they prove nothing, so the ids must be read again. A
    cache of any other class comes back as it is.
    """
    if isinstance(cache, QuantizedCache):
        return None
    if not isinstance(cache, StaticCache):
        return cache
    length, dynamic = int(cache.get_seq_length()), empty_cache(model)
    layers = cast(list[Any], dynamic.layers)
    for number, (layer, slot) in enumerate(zip(cast(list[Any], cache.layers), layers, strict=True)):
        if type(layer) not in (StaticLayer, StaticSlidingWindowLayer):
            return None
        keys, values = layer.keys[:, :, :length], layer.values[:, :, :length]
        slot.lazy_initialization(keys, values)
        slot.keys, slot.values = keys, values
        if type(layer) is StaticSlidingWindowLayer:
            slot.cumulative_length = length
        assert slot.get_seq_length() == length, number
    return dynamic
