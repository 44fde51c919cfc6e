"""Caches of other classes that a card can be captured from."""

from __future__ import annotations

from typing import Any, cast

from transformers import Cache, PreTrainedModel, QuantizedCache, StaticCache
from transformers.cache_utils import StaticLayer, StaticSlidingWindowLayer

from .layers import empty_cache
from .observe import observe


def as_dynamic(model: PreTrainedModel, cache: Cache) -> Cache | None:
    """What ``cache`` holds, in a ``DynamicCache`` over the same memory if it is a ``StaticCache``.

    None where the numbers are not those that the model computed (``QuantizedCache``), where a layer
    holds more than keys and values, or where none holds any: they prove nothing, so the ids must be
    read again. A cache of any other class comes back as it is.
    """
    if isinstance(cache, QuantizedCache) or not observe(model).layers:
        return None
    if not isinstance(cache, StaticCache):
        return cache
    dynamic = empty_cache(model)
    pairs = zip(cast(list[Any], cache.layers), cast(list[Any], dynamic.layers), strict=True)
    for layer, slot in pairs:
        if type(layer) not in (StaticLayer, StaticSlidingWindowLayer):
            return None
        if (length := int(layer.get_seq_length())) == 0:
            continue
        keys, values = layer.keys[:, :, :length], layer.values[:, :, :length]
        slot.lazy_initialization(keys, values)
        slot.keys, slot.values = keys, values
        if type(layer) is StaticSlidingWindowLayer:
            slot.cumulative_length = length
    return dynamic
