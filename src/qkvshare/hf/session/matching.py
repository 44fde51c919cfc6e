"""From a prompt to the card in a store that it begins like, and to the cache of that card.

Nobody asked for such a card, so whatever is wrong with it, the text is read instead.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import suppress

import torch
from transformers import Cache, PreTrainedModel, PreTrainedTokenizerBase

from ...card import Identity
from ...card.digest import TokenIds
from ...card.errors import CancelledError, CardError, StoreError
from ...store import Store
from ..cache.layers import empty_cache
from .answers import Prompt
from .tiers import Name, Tiers


def longest(store: Store, ids: TokenIds, identity: Identity) -> Prompt:
    """``ids``, with the store's card of their longest beginning, if there is one.

    A card that cannot be read is set aside, see `Store.set_aside`.
    """
    found = None
    try:
        found = store.match(ids, identity)
        if found is not None:
            return Prompt(ids, store.get(found.card, found.tokens), found.card)
    except (CardError, StoreError) as error:
        _set_aside(store, None if found is None else found.card, error)
    return Prompt(ids)


def cache_of(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: Prompt,
    store: Store | None,
    tiers: Tiers,
    cancelled: Callable[[], bool],
) -> Cache:
    """A cache with the first tokens of the prompt, always without the last one.

    It is empty where the prompt has no card, or one that it was found to begin like and that cannot
    be used; such a card is set aside in ``store``. Raises `CancelledError`, and what `inject` does
    for a card that was named.
    """
    if prompt.card is None:
        return empty_cache(model)
    try:
        name = Name(prompt.found or prompt.card.digest, prompt.card.tokens)
        return tiers.resume(model, name, prompt.card, prompt.ids, tokenizer, cancelled)
    except (CancelledError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        if prompt.named:
            raise
        _set_aside(store, prompt.found, error)
        return empty_cache(model)


def _set_aside(store: Store | None, digest: str | None, error: Exception) -> None:
    warnings.warn(f"the text is read again, its card cannot be used: {error}", stacklevel=3)
    if store is not None and digest is not None:
        with suppress(StoreError):
            store.set_aside(digest)
