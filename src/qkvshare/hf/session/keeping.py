"""A card of an answered conversation."""

from __future__ import annotations

from typing import Any

from transformers import Cache, PreTrainedModel, PreTrainedTokenizerBase

from ...card import CacheCard
from ...card.digest import TokenIds
from ...codecs import Codec
from ..cache.complete import complete
from ..cache.observe import observe
from ..capture.capture import capture, capture_cache, make_card
from ..capture.reading import finish
from ..compose.compose import ComposedCache
from ..model.identity import identify
from .answers import Keep


def make_kept(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    how: Keep,
    codec: Codec | None,
    salt: str | None,
    ids: TokenIds,
    cache: Cache | None,
) -> CacheCard:
    """A card of ``ids``: of ``cache`` once it has read those that it lacks, or read now if there
    is none. A cache of a card goes on as the card was encoded. Raises as `capture`."""
    settings: dict[str, Any] = {"bits": how.bits, "agent": how.agent, "ttl": how.ttl}
    settings |= {"codec": codec, "salt": salt}
    if cache is None or isinstance(cache, ComposedCache):  # of that no card is made
        return capture(model, tokenizer, ids, **settings)
    if (parent := getattr(cache, "card", None)) is not None:
        settings["codec"] = None
    if observe(model).states:
        # `capture_cache` would read all ids again, since nothing proves such a cache.
        state = finish(model, cache, ids)
        return make_card(state, identify(model, tokenizer), parent=parent, **settings)
    complete(model, cache, ids)
    return capture_cache(model, cache, ids, tokenizer=tokenizer, **settings)
