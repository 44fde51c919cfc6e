"""Inject: from a card to ready arguments for ``model.generate``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from transformers import Cache, DynamicCache, PreTrainedModel, PreTrainedTokenizerBase
from transformers.cache_utils import DynamicLayer

from ..card import CacheCard
from ..card.digest import TokenIds
from ..card.errors import PromptError
from .cache import CardCache
from .coded import CodedLayer
from .fill import fill, keep_codes, keep_half
from .identity import identify
from .layers import empty_cache, require_geometry
from .tokens import Ids, as_ids, require_length, require_vocabulary

# From this length on, new_ids that begin with the whole card are taken for a mistake.
_SURELY_REPEATED = 16


def inject(
    model: PreTrainedModel,
    card: CacheCard,
    new_ids: Ids = (),
    *,
    prompt_ids: Ids | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    held: Cache | None = None,
    codes: bool = False,
    half: bool = False,
    cancelled: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """Give ``model`` the card's state and the tokens that come after it.

    Returns ``input_ids [1, new]``, ``attention_mask [1, context + new]`` and ``past_key_values``:
    ``model.generate(**inject(...))`` goes on from the card, and so does ``model(**inject(...))``.
    What ``generate`` returns starts with ``input_ids``, without the card's tokens. The cache is a
    copy of its own each time; ``generate`` changes it.

    With no new token at all (an exact hit) the card's last token is rolled back and read again,
    since a model can only go on from a token it reads.

    Args:
        model: must be what the card's identity says, weight for weight.
        card: from `capture` or ``CacheCard.load``.
        new_ids: what follows the card's tokens, ``[new]`` or ``[1, new]``.
        prompt_ids: instead of ``new_ids``: the whole prompt, which must begin with the card's ids.
        tokenizer: the receiver's; given, it must be the one the card is bound to.
        held: a cache that `inject` made of a card which this one was captured from, one sequence.
            What both share is copied from it instead of decoded again, and need not be in the
            card (`CacheCard.without`). A cache that lacks some of it changes nothing.
        codes: keep full layers as the card's bytes, and decode each whenever it is read: a long
            context in a fraction of the memory, for slower tokens. Not for `Transform`, whose
            layers are decoded from each other.
        half: keep full layers of a float32 model in bfloat16: half the memory, and tokens sooner
            with attention `qkvshare`. Not for `Raw`, which loses nothing.
        cancelled: asked before each layer; once it is true, `CancelledError` is raised.

    Raises:
        IdentityError, PromptError, CardError and its family, UnsupportedModelError; always before
        the model is touched.
    """
    ids, bound = as_ids(new_ids, "new_ids"), _Bound(model, card, tokenizer)
    card.require_fresh()
    try:
        new, kept, empty = _admit(model, card, ids, prompt_ids)
        cache = CardCache(card, kept, empty)
        if codes and half:
            raise PromptError("give codes= (a card's own bits stay) or half= (16 bits), not both.")
        if half:
            keep_half(model, cache)
        if codes:
            bound()
            keep_codes(model, cache, cancelled)
        if not codes or any(at.window for at in card.manifest.layers):
            fill(model, cache, _shared(cache, held), bound, cancelled)
    except Exception:
        bound()  # of a card for another model nothing else is said
        raise
    return _arguments(model, new, kept, cache)


def prefill(
    model: PreTrainedModel,
    card: CacheCard,
    new_ids: Ids = (),
    *,
    prompt_ids: Ids | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> dict[str, Any]:
    """What `inject` gives, made by reading the card's text again: at full precision, and later.

    Needs none of the card's encoded bytes. `costs.choose` says when it is sooner. Raises as
    `inject`.
    """
    given = as_ids(new_ids, "new_ids")
    card.require_fresh()
    _Bound(model, card, tokenizer)()
    new, kept, _ = _admit(model, card, given, prompt_ids)
    cache = empty_cache(model)
    ids = torch.from_numpy(card.token_ids[:kept].astype(np.int64))[None].to(model.device)
    with torch.no_grad():
        if kept:
            model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
    return _arguments(model, new, kept, cache)


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
    """The tokens to read, how many of the card come before them, and an empty cache as
    `require_geometry` has it; all but the identity is checked."""
    empty = require_geometry(model, card.manifest.layers)
    require_vocabulary(model, card.token_ids, "card")
    new, kept = _new_tokens(model, card, new, prompt_ids), card.tokens
    if len(new) == 0:
        new, kept = card.token_ids[-1:], kept - 1
    require_length(model, kept + len(new))
    return new, kept, empty


def _arguments(
    model: PreTrainedModel, new: TokenIds, kept: int, cache: DynamicCache
) -> dict[str, Any]:
    device = model.device
    return {
        "input_ids": torch.from_numpy(new.astype(np.int64))[None].to(device),
        "attention_mask": torch.ones(1, kept + len(new), dtype=torch.long, device=device),
        "past_key_values": cache,
    }


def _new_tokens(
    model: PreTrainedModel, card: CacheCard, new: TokenIds, prompt_ids: Ids | None
) -> TokenIds:
    """The tokens to read after the card's, checked."""
    context, known = card.token_ids, card.tokens
    if prompt_ids is not None:
        if len(new):
            raise PromptError("give new_ids (what follows) or prompt_ids (all of it), not both.")
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
        new = prompt[known:]
    elif known >= _SURELY_REPEATED and np.array_equal(new[:known], context):
        raise PromptError(
            f"new_ids repeat the card's {known} tokens, which would be read twice. Pass only what "
            "follows, or the whole prompt as prompt_ids=."
        )
    require_vocabulary(model, new, "prompt")
    return new


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
