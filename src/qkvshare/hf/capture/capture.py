"""Capture: from what an agent has read to a card."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
from torch import Tensor
from transformers import Cache, PreTrainedModel, PreTrainedTokenizerBase

from ...card import CacheCard, Hop, Identity, StateBits
from ...card.digest import is_digest
from ...card.errors import BudgetError, CaptureError
from ...codecs import Codec, Packed, from_record
from ..model.identity import identify
from ..model.text_only import require_text
from ..text.messages import Message
from ..text.tokens import Ids, ids_of
from .checkpoints import Checkpoints, as_one_hop, ends_of
from .encode import encode
from .live import pick_row
from .measured import measured
from .new_card import NewCard
from .reading import read, read_to
from .state import State
from .strategy import scorer_of

DEFAULT_STATE_BITS: StateBits = 8
STATE_BITS: dict[int, StateBits | None] = {4: 4, 8: 8, 32: None}


def capture(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    source: str | Sequence[Message] | Ids,
    *,
    codec: Codec | None = None,
    bits: float | None = None,
    parent: CacheCard | None = None,
    agent: str = "",
    ttl: float | None = None,
    salt: str | None = None,
    state_bits: int | None = None,
    checkpoints: Checkpoints | None = None,
) -> CacheCard:
    """Read ``source`` and make a card of what the model understood.

    Args:
        model: a causal language model of ``transformers``; docs/models.md says which.
        tokenizer: the model's. A text and messages need it; with ids it may be None, and then the
            card is bound to the model alone.
        source: a text, chat messages for the tokenizer's template, or token ids ``[tokens]``.
        codec: how to encode; by default as the parent, and `Packed` without one.
        bits: bits per value of the whole card file. A codec with tiers allocates them row by row
            and comes within 2 % of them; any other is narrowed until it fits. Without ``bits`` new
            tokens are encoded as finely as the parent's, and without a parent at `DEFAULT_BITS`.
        parent: a card of the first tokens of ``source``. Its segments are kept byte for byte, and
            only the tokens after it are encoded.
        agent: a name for the lineage.
        ttl: seconds after which the card refuses to be used.
        salt: 64 hex digits that key every digest of the card, so that only those who have them can
            tell whether two cards share a text. By default the parent's.
        state_bits: bits per number of recurrent states, for a model that keeps them: 8, 4, or 32
            for all that the model has. By default the parent's, else 8, and 32 if the codec is
            lossless. Compressed entries count as such. ``bits`` does not count states.
        checkpoints: where segments end, for prompts that go on otherwise from there: after each
            so many tokens, after these numbers of tokens, or after each message with "messages".
            By default there is one segment. See `CacheCard.head`.

    Raises:
        CaptureError, PromptError: the source cannot be read, or does not go on from the parent.
        UnsupportedModelError: a card cannot carry the model's state.
        IdentityError: the parent belongs to another model.
        CodecError, BudgetError: the codec cannot encode this, or not in ``bits``.
    """
    require_numbers(bits, ttl)
    identity = identify(model, tokenizer)  # refuses models before anything long is read
    codec = codec or _inherited(parent)
    scorer = scorer_of(codec)
    ids = ids_of(tokenizer, source)
    require_text(model, ids)
    how: dict[str, Any] = {"agent": agent, "ttl": ttl, "salt": salt, "state_bits": state_bits}
    if checkpoints is None:
        state = read(model, ids, [] if scorer is None else [scorer])
        return make_card(state, identity, codec, bits, parent=parent, **how)
    start, card = 0 if parent is None else parent.tokens, parent
    for state in read_to(model, ids, ends_of(checkpoints, tokenizer, source, ids, start)):
        card = make_card(state, identity, codec, bits, parent=card, **how)
    assert card is not None
    return as_one_hop(card, parent, agent)


def capture_cache(
    model: PreTrainedModel,
    cache: Cache,
    ids: Ids,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    attention_mask: Tensor | None = None,
    row: int | None = None,
    codec: Codec | None = None,
    bits: float | None = None,
    parent: CacheCard | None = None,
    anew: bool = False,
    agent: str = "",
    ttl: float | None = None,
    salt: str | None = None,
    state_bits: int | None = None,
) -> CacheCard:
    """Make a card of a live cache, which stays as it is.

    A cache that began as a card is appended to that card: the card's bytes are kept, and only the
    tokens since are encoded. After ``generate`` the last sampled token is not in the cache yet;
    `CacheCard.extend` reads it first.

    ``codec``, ``bits``, ``agent``, ``ttl``, ``salt`` and ``state_bits`` are as in `capture`.

    Args:
        model: the model that made the cache.
        cache: a ``DynamicCache`` or ``StaticCache`` of exactly ``ids``, from position 0. The keys
            of its first layer are compared with the ids; that the model made the other layers is
            not checked. What the keys cannot prove is read again: tokens that a sliding first
            layer has forgotten, all tokens of a ``QuantizedCache`` and of models with states.
        ids: token ids ``[tokens]``; of a batch ``[batch, tokens]``.
        tokenizer: the model's, to bind the card to it.
        attention_mask: ``[batch, tokens]`` of a padded batch. The card is without the padding.
        row: which sequence of the batch; needed where there are several.
        parent: another card of the first tokens, instead of the one that the cache began as.
        anew: encode all tokens again, without a parent. A lossy codec then loses again.

    Raises:
        CaptureError: the cache is not of these ids.
        Others: as `capture`.
    """
    require_numbers(bits, ttl)
    identity = identify(model, tokenizer)
    state = pick_row(model, cache, ids, attention_mask, row)
    card = state.card
    if salt is None and parent is None and card is not None:
        salt = card.manifest.salt
    if parent is None and card is not None and card.tokens < len(state.ids) and not anew:
        parent = card
    how: dict[str, Any] = {"agent": agent, "ttl": ttl, "salt": salt, "state_bits": state_bits}
    return make_card(state, identity, codec, bits, parent=parent, **how)


def require_numbers(bits: float | None, ttl: float | None) -> None:
    """Raise `BudgetError` or `CaptureError` for numbers that mean nothing."""
    if bits is not None and not 0 < bits < math.inf:
        raise BudgetError(f"bits={bits:g} bits per value; expected a number above 0.")
    if ttl is not None and not -1e9 <= ttl <= 1e9:
        raise CaptureError(f"ttl={ttl:g} seconds; expected a number of at most 1e9.")


def make_card(
    state: State,
    identity: Identity,
    codec: Codec | None,
    bits: float | None = None,
    *,
    parent: CacheCard | None = None,
    agent: str = "",
    ttl: float | None = None,
    salt: str | None = None,
    state_bits: int | None = None,
) -> CacheCard:
    """Score, allocate and encode ``state`` to a card, by ``codec`` or the parent's. Raises as
    `capture`."""
    start = 0 if parent is None else _require_parent(parent, state, identity)
    salt = _salt(parent, salt)
    if parent is not None and identity.tokenizer is None:
        identity = parent.manifest.identity  # the same but for the tokenizer, which it may know
    if parent is not None and parent.thin and bits is not None:
        raise BudgetError(
            f"bits= is for the whole card, and the parent is thin: the bytes of its first "
            f"{parent.thin} segments are not at hand. Leave bits= out (the new tokens are "
            "then encoded as the parent's were), or put the parent together with card.whole(…)."
        )
    codec = (codec or _inherited(parent)).for_model(identity.weights)
    lineage = [] if parent is None else parent.manifest.lineage
    hop = Hop(
        hop=len(lineage),
        agent=agent,
        tokens_added=len(state.ids) - start,
        parent=None if parent is None else parent.digest,
    )
    new = NewCard(
        state=state,
        start=start,
        created=datetime.now(UTC),
        ttl=ttl,
        identity=identity,
        lineage=[*lineage, hop],
        segments=[] if parent is None else parent.manifest.segments,
        tensors={} if parent is None else parent.verified(),
        salt=salt,
        state_bits=_state_bits(state, state_bits, codec, parent),
    )
    codec, scores = measured(state, identity, codec, start)
    return encode(new, codec, scores, bits)


def _state_bits(
    state: State, asked: int | None, codec: Codec, parent: CacheCard | None
) -> StateBits | None:
    """Bits per number of recurrent states; None for all of their bytes. Raises `BudgetError`."""
    if asked is not None and (asked not in STATE_BITS or not state.states):
        has = "has" if state.states else "keeps no"
        raise BudgetError(
            f"state_bits={asked}, and the model {has} states; expected 4, 8 or 32 for a model that "
            "keeps recurrent states, and to leave it out for any other."
        )
    if asked is not None:
        return STATE_BITS[asked]
    if codec.lossless:
        return None
    return DEFAULT_STATE_BITS if parent is None else parent.manifest.segments[-1].state_bits


def _inherited(parent: CacheCard | None) -> Codec:
    return Packed() if parent is None else from_record(parent.manifest.segments[-1].codec)


def _require_parent(parent: CacheCard, state: State, identity: Identity) -> int:
    """Length of the parent's context, which ``state`` must go on from."""
    parent.manifest.identity.require(identity)
    start = parent.tokens
    if len(state.ids) <= start or not np.array_equal(state.ids[:start], parent.token_ids):
        raise CaptureError(
            f"the {len(state.ids)} tokens do not go on from the parent's {start}. Capture without "
            "parent=, or pass all ids from the start of the context."
        )
    return start


def _salt(parent: CacheCard | None, salt: str | None) -> str | None:
    """The new card's, which must be its parent's."""
    if salt is not None and not is_digest(salt):
        raise CaptureError("the salt is malformed; expected 64 lower-case hex digits.")
    if parent is None or salt is None:
        return salt if parent is None else parent.manifest.salt
    if salt != parent.manifest.salt:
        raise CaptureError(
            "the parent card has another salt, or none, and its segments are kept as they are. "
            "Leave salt= out, or go on from parent.salted(salt)."
        )
    return salt
