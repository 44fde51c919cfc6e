"""What puts a card into a model and takes one out of it. Cards know no model, so it is looked up.

Looking at a card needs neither torch nor transformers; the engine, which needs both, is imported
when a card first meets a model.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal, NotRequired, Protocol, TypedDict, cast

if TYPE_CHECKING:
    from .card import CacheCard

# How a cache holds the card's tokens: as numbers of the model's format, as numbers of 16 bits, or
# as the card's own bytes.
KVFormat = Literal["model", "bfloat16", "codes"]


class Inputs(TypedDict):
    """Arguments of ``model.generate`` and of ``model.forward``.

    Attributes:
        input_ids: int64 ``[1, tokens]``.
        attention_mask: int64 ``[1, context + new]``.
        past_key_values: the cache, a ``DynamicCache``.
        use_cache: True.
        cache_implementation: None, where the model's generation config names another cache.
    """

    input_ids: Any
    attention_mask: Any
    past_key_values: Any
    use_cache: bool
    cache_implementation: NotRequired[None]


class Engine(Protocol):
    """A module that runs models. `CacheCard` has methods of these names and describes them."""

    inputs: Callable[..., Inputs]
    extend: Callable[..., CacheCard]


def engine() -> Engine:
    """The engine for models of transformers."""
    return cast(Engine, import_module("qkvshare.hf.engine"))
