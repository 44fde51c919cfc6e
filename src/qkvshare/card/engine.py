"""What puts a card into a model and takes one out of it. Cards know no model, so it is looked up.

Looking at a card needs neither torch nor transformers; the engine, which needs both, is imported
when a card first meets a model.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any, Literal, NotRequired, TypedDict

# How a cache holds the card's tokens: as numbers of the model's format, as numbers of 16 bits, or
# as the card's own bytes.
KVFormat = Literal["model", "bfloat16", "codes"]


class Inputs(TypedDict):
    """Arguments of ``model.generate`` and of ``model.forward``."""

    input_ids: Any  # int64 [1, tokens]
    attention_mask: Any  # int64 [1, context + new]
    past_key_values: NotRequired[Any]  # the cache, a DynamicCache
    cache_params: NotRequired[Any]  # the cache instead, for a model without attention
    use_cache: bool  # True
    position_ids: NotRequired[Any]  # int64 [1, new], for a plain forward that must be told them
    cache_implementation: NotRequired[None]  # where the generation config names another cache


def engine() -> Any:
    """The engine for models of transformers; `CacheCard` describes its functions."""
    return import_module("qkvshare.hf.engine")
