"""Inject: from a card to ready arguments for ``model.generate``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast, get_args
from weakref import ref

import numpy as np
import torch
from torch import Tensor
from transformers import Cache, DynamicCache, PreTrainedModel, PreTrainedTokenizerBase
from transformers.cache_utils import DynamicLayer

from ...card import CacheCard
from ...card.digest import TokenIds
from ...card.engine import Inputs, KVFormat
from ...card.errors import PromptError
from ..cache.card_cache import CardCache
from ..cache.coded import CodedLayer
from ..cache.guard import GuardedCache, Use
from ..cache.layers import require_geometry
from ..model.config import innermost
from ..model.identity import identify
from ..model.text_only import forget_positions, require_text
from ..text.tokens import Ids, as_ids, following, require_length, require_vocabulary
from .fill import fill, keep_codes, keep_half

# From this length on, new ids that begin with the whole card are taken for a mistake.
_SURELY_REPEATED = 16


def inject(
    card: CacheCard,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None = None,
    new: str | Ids = "",
    *,
    prompt_ids: Ids | None = None,
    new_only: bool = False,
    kv_format: KVFormat = "model",
    cached: Cache | None = None,
    cancelled: Callable[[], bool] = lambda: False,
) -> Inputs:
    """`CacheCard.inputs`: the card's state in a cache of ``model``, and the tokens after it.

    The model and its identity are checked before the card's bytes are used.
    """
    if kv_format not in (formats := get_args(KVFormat)):
        raise PromptError(f"kv_format is {kv_format!r}; expected one of {', '.join(formats)}.")
    bound = _Bound(model, card, tokenizer)
    card.require_fresh()
    try:
        prompt, kept, empty = _admit(model, card, _ids(tokenizer, new), prompt_ids)
        # Memory made in inference mode could not be written outside of it.
        with torch.inference_mode(False):
            cache = CardCache(card, kept, empty)
            if kv_format == "bfloat16":
                keep_half(model, cache)
            if kv_format == "codes":
                bound()
                keep_codes(model, cache, cancelled)
            if kv_format != "codes" or any(at.window for at in card.manifest.layers):
                fill(model, cache, _shared(cache, cached), bound, cancelled)
    except Exception:
        bound()  # of a card for another model nothing else is said
        raise
    return _arguments(model, card, prompt, cache, new_only)


def prefill(
    card: CacheCard,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None = None,
    new: str | Ids = "",
    *,
    prompt_ids: Ids | None = None,
    new_only: bool = False,
) -> Inputs:
    """What `inject` gives, made by reading the card's text again: at full precision, and later.

    Needs none of the card's encoded bytes. `costs.choose` says when it is sooner. Raises as
    `inject`.
    """
    card.require_fresh()
    _Bound(model, card, tokenizer)()
    prompt, kept, _ = _admit(model, card, _ids(tokenizer, new), prompt_ids)
    ids = torch.from_numpy(card.token_ids[:kept].astype(np.int64))[None].to(model.device)
    with torch.inference_mode(False), torch.no_grad():
        cache = GuardedCache(config=model.config)
        if kept:
            model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
    return _arguments(model, card, prompt, cache, new_only)


def _ids(tokenizer: PreTrainedTokenizerBase | None, new: str | Ids) -> TokenIds:
    if new == "":
        new = ()
    return following(tokenizer, new) if isinstance(new, str) else as_ids(new, "new")


@dataclass
class _Bound:
    """Looks, once, whether a card is bound to a model. Raises `IdentityError`, and as `identify`.

    Attributes:
        looked: whether it has; who is told of another model needs no more.
    """

    model: PreTrainedModel
    card: CacheCard
    tokenizer: PreTrainedTokenizerBase | None
    looked: bool = False

    def __call__(self) -> None:
        """Look, unless that was done."""
        if not self.looked:
            self.looked = True
            self.card.manifest.identity.require(identify(self.model, self.tokenizer))


def _admit(
    model: PreTrainedModel, card: CacheCard, new: TokenIds, prompt_ids: Ids | None
) -> tuple[TokenIds, int, DynamicCache]:
    """The whole prompt, how many of its tokens come from the card, and an empty cache as
    `require_geometry` has it; all but the identity is checked."""
    empty = require_geometry(model, card.manifest.layers)
    require_vocabulary(model, card.token_ids, "card")
    require_text(model, card.token_ids)
    forget_positions(model)
    prompt = _whole(card, new, prompt_ids)
    require_vocabulary(model, prompt[card.tokens :], "prompt")
    require_length(model, len(prompt))
    return prompt, min(card.tokens, len(prompt) - 1), empty


def _arguments(
    model: PreTrainedModel, card: CacheCard, prompt: TokenIds, cache: GuardedCache, new_only: bool
) -> Inputs:
    kept, watched = cache.get_seq_length(), ref(model)
    given = prompt[kept:] if new_only else prompt

    def bound() -> None:
        """The cache must not keep the model in memory."""
        if (now := watched()) is not None:
            card.manifest.identity.require(identify(now))

    cache.use = Use(ref(innermost(model)), kept, len(given), new_only, bound)
    ids = torch.from_numpy(given.astype(np.int64))[None].to(model.device)
    arguments: Inputs = {
        "input_ids": ids,
        "attention_mask": torch.ones(1, len(prompt), dtype=torch.long, device=model.device),
        "past_key_values": cache,
        "use_cache": True,  # whatever the configuration says
    }
    own = getattr(model, "generation_config", None)
    if not new_only and getattr(own, "cache_implementation", None):
        arguments["cache_implementation"] = None  # the card's cache is used
    return arguments


def _whole(card: CacheCard, new: TokenIds, prompt_ids: Ids | None) -> TokenIds:
    """The card's tokens and those to read after them. Raises `PromptError`."""
    context, known = card.token_ids, card.tokens
    if prompt_ids is not None:
        if len(new):
            raise PromptError("give new (what follows) or prompt_ids (all of it), not both.")
        prompt = as_ids(prompt_ids, "prompt_ids")
        same = prompt[:known] == context[: len(prompt)]
        if len(prompt) < known or not same.all():
            at = int(np.argmin(same)) if not same.all() else len(prompt)
            found = prompt[at] if at < len(prompt) else "its end"
            raise PromptError(
                f"the prompt does not continue the card: at token {at} it has {found}, the card "
                f"has {context[at]} (card of {known} tokens, prompt of {len(prompt)}). "
                "A cache is valid for its exact prefix only; capture this prompt instead."
            )
        return prompt
    if known >= _SURELY_REPEATED and np.array_equal(new[:known], context):
        raise PromptError(
            f"new repeats the card's {known} tokens, which would be read twice. Pass only what "
            "follows, or the whole prompt as prompt_ids=."
        )
    return np.concatenate([context, new])


def _shared(cache: CardCache, held: Cache | None) -> CardCache | None:
    """``held``, where it has what the first segments of a card would be decoded to."""
    card, kept = cache.card, cache.decoded
    if not isinstance(held, CardCache) or held.decoded < held.card.tokens:
        return None
    mine, theirs = held.card.manifest.segments, card.manifest.segments
    if mine != theirs[: len(mine)]:
        return None
    if any(isinstance(layer, CodedLayer) for layer in held.layers):
        return None
    if [*map(type, held.layers)] != [*map(type, cache.layers)]:  # numbers of another format
        return None
    length = held.get_seq_length()
    if length < held.card.tokens:  # it was reset
        return None
    places = cast(list[DynamicLayer], held.layers)
    for place, at in zip(places, card.manifest.layers, strict=True):
        batch, _, tokens, _ = cast(Tensor, place.keys).shape
        needed = 0 if at.window is None else max(0, kept - at.window + 1)
        if batch > 1 or length - tokens > needed:  # it may have forgotten what is in the window
            return None
    return held
