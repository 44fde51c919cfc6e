"""One sequence of a live cache: a row of a batch, without its padding, proved to be of its ids.

Layer 0's keys depend on token and position only, so one projection shows the truth for every token
that layer 0 still holds. Where it slides it has forgotten the first ones, and nothing else can
prove them cheaply: those are read again, so that state and ids belong together all the same.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from transformers import Cache, PreTrainedModel

from ...card import CacheCard
from ...card.digest import TokenIds
from ...card.errors import CaptureError
from ...codecs import LayerKV
from ..cache.card_cache import CardCache, GuardedCache
from ..cache.counting import CountingCache, states_alone
from ..cache.layers import attention_layers, attention_numbers, describe, empty_cache
from ..cache.observe import observe
from ..cache.sources import as_dynamic
from ..inject.bound import BoundCard
from ..inject.fill import fill
from ..model.text_only import require_text
from ..text.tokens import Ids, as_array, as_ids
from .reading import finish, read, require_context
from .state import State, state_of

# Relative error per key vector between two runs of the same projection: rounding, and other matmul
# shapes. Another token is much farther away (on SmolLM2 its nearest neighbour is at 0.2, median).
_TOLERANCE = {torch.float32: 1e-3, torch.float16: 5e-3, torch.bfloat16: 3e-2}


def pick_row(
    model: PreTrainedModel,
    cache: Cache,
    token_ids: Ids,
    attention_mask: Tensor | None = None,
    row: int | None = None,
) -> State:
    """One sequence of a live cache, which is left as it is; where it proves nothing (`as_dynamic`)
    the ids are read.

    ``token_ids`` and ``attention_mask`` are ``[batch, tokens]``. Raises `CaptureError`,
    `PromptError` or `UnsupportedModelError`.
    """
    source = as_dynamic(model, cache)
    batch, length = _size(cache, source, token_ids)
    if row is None and batch > 1:
        raise CaptureError(f"the cache holds {batch} sequences; pick one with row=.")
    row = row or 0
    if not 0 <= row < batch:
        raise CaptureError(f"row {row} of a batch of {batch}; expected 0 to {batch - 1}.")
    rows = np.atleast_2d(as_array(token_ids))
    if rows.shape not in ((batch, length), (1, length)):
        raise CaptureError(
            f"the cache holds {batch} × {length} tokens, the ids are {list(rows.shape)}. After "
            "generate the last sampled token is not in the cache yet: pass sequences[:, :-1]."
        )
    ids = as_ids(rows[row if len(rows) == batch else 0])
    real = None
    if attention_mask is not None:
        if attention_mask.shape != (batch, length):
            raise CaptureError(
                f"attention_mask is {list(attention_mask.shape)}, expected [{batch}, {length}]."
            )
        real = attention_mask[row].bool().cpu()
        ids = ids[real.numpy()]
    require_context(model, ids)
    require_text(model, ids)
    card, decoded = cache.began_as(row) if isinstance(cache, GuardedCache) else (None, 0)
    known = 0 if card is None else min(_require_ids_of(card, ids), decoded)
    if source is None:
        return replace(_read_again(model, card, ids), card=card)
    state = state_of(model, attention_layers(source), row, ids, real, length)
    first = max(known, state.first(0)) if observe(model).provable else len(ids)
    _require_cache_of(model, state.cached[0].keys[:, first - len(ids) :], ids, first)
    if known < first:  # layer 0 has forgotten tokens that nobody has proved, or proves nothing
        return replace(_read_again(model, card, ids), card=card)
    cached = [LayerKV(at.keys.to(model.dtype), at.values.to(model.dtype)) for at in state.cached]
    return replace(state, card=card, cached=cached)


def _size(cache: Cache, source: Cache | None, token_ids: Ids) -> tuple[int, int]:
    """Sequences and tokens of a live cache. Raises `CaptureError` where it is empty."""
    if source is None:  # its numbers say nothing: the ids tell how many rows there are
        rows = np.atleast_2d(as_array(token_ids))
        counted = not states_alone(cache) or isinstance(cache, CountingCache)
        return len(rows), int(cache.get_seq_length()) if counted else rows.shape[1]
    first = attention_layers(source)[0]
    describe(0, first)  # refuses an empty cache
    # Not the cache's own word: a class of the model's own may ask a layer that holds a state.
    return cast(Tensor, first.keys).shape[0], first.get_seq_length()


def decode(model: PreTrainedModel, card: CacheCard) -> CardCache:
    """A cache of all the card's tokens, or of all but the last one where the model keeps states."""
    bound = BoundCard(card, model)
    cache = bound.cache(bound.decodes(card.tokens))
    fill(bound, cache)
    return cache


def _read_again(model: PreTrainedModel, card: CacheCard | None, ids: TokenIds) -> State:
    """The state of ``ids``, from the card's on where its bytes are at hand."""
    if card is None or card.thin:
        return read(model, ids)
    return finish(model, decode(model, card), ids)


def _require_ids_of(card: CacheCard, ids: TokenIds) -> int:
    """How many tokens of ``ids`` the cache has from ``card``; they must be the card's."""
    known = min(card.tokens, len(ids))
    same = ids[:known] == card.token_ids[:known]
    if not same.all():
        at = int(np.argmin(same))
        raise CaptureError(
            f"the cache was injected from a card whose token {at} is {card.token_ids[at]}, the ids "
            f"have {ids[at]} there. Pass the card's ids, then those that were fed since."
        )
    return known


def _require_cache_of(model: PreTrainedModel, keys: Tensor, ids: TokenIds, first: int) -> None:
    """Prove that a live cache was made of these ids at positions 0, 1, 2, …

    ``keys [kv_heads, tokens, head_dim]`` are layer 0's from token ``first`` on. Costs about a
    hundredth of a prefill. Raises `CaptureError` naming the first token that differs.
    """
    if first == len(ids):
        return
    positions = torch.arange(first, len(ids), device=model.device)
    tokens = torch.from_numpy(ids[first:]).to(model.device)
    expected = _first_layer_keys(model, tokens, positions).float()
    difference = (keys.float() - expected).norm(dim=-1).amax(0)  # [tokens], worst head
    scale = expected.norm(dim=-1).amax(0).clamp(min=1e-6)
    wrong = ~(difference <= _TOLERANCE[keys.dtype] * scale)
    if wrong.any():
        at = first + int(wrong.int().argmax())
        raise CaptureError(
            f"the cache was not made of these token ids: {int(wrong.sum())} of {len(tokens)} keys "
            f"differ, first at token {at} (id {ids[at]}). Pass the ids that were fed, without the "
            "last one that generate sampled; for a padded batch, pass its attention_mask and make "
            "the cache with generate() or position_ids, so that every row starts at position 0."
        )


class _Stop(Exception):
    pass


def _first_layer_keys(model: PreTrainedModel, ids: Tensor, positions: Tensor) -> Tensor:
    """Keys of layer 0, ``[kv_heads, tokens, head_dim]``: the forward ends where it stores them."""
    cache = empty_cache(model)

    def update(keys: Tensor, *_: Any, **__: Any) -> Any:
        raise _Stop(keys)

    cache.layers[attention_numbers(cache)[0]].update = update  # type: ignore
    try:
        with torch.no_grad():
            model(
                input_ids=ids[None],
                position_ids=positions[None],
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
    except _Stop as stop:
        return cast(Tensor, stop.args[0][0])
    raise CaptureError("the model did not use the cache it was given; use_cache must be supported.")
