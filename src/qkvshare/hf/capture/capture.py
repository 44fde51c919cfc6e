"""Capture: from what an agent has read to a card."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Literal

import numpy as np
from torch import Tensor
from transformers import Cache, PreTrainedModel, PreTrainedTokenizerBase

from ...card import CacheCard, Hop, Identity
from ...card.digest import is_digest
from ...card.errors import BudgetError, CaptureError
from ...codecs import Allocator, Codec, Packed, Stepped, Tiered, from_record
from ...scoring import Scorer
from ..model.identity import identify
from ..model.text_only import require_text
from ..text.tokens import Ids, Message, as_ids, tokenize
from .allocate import Spending, spending
from .live import pick_row
from .segments import Before, encode_alike, encode_steps, encode_tiers
from .state import State, read


def capture(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None = None,
    source: str | Sequence[Message] | None = None,
    *,
    token_ids: Ids | None = None,
    cache: Cache | None = None,
    attention_mask: Tensor | None = None,
    row: int | None = None,
    codec: Codec | None = None,
    bits: float | None = None,
    scorer: Scorer | None = None,
    allocator: Allocator | None = None,
    parent: CacheCard | Literal["cache"] | None = "cache",
    agent: str = "",
    ttl: float | None = None,
    salt: str | None = None,
) -> CacheCard:
    """Make a card of what ``model`` has read.

    One of three origins: ``source``, a prompt or chat messages, read now; ``token_ids``, read now;
    or a live ``cache`` with the ``token_ids`` it was made of, which is left as it is.

    Args:
        model: a causal language model of ``transformers`` with full or sliding attention layers.
        tokenizer: needed for ``source``; otherwise optional, to bind the card to it.
        source: a prompt, or messages for the chat template.
        token_ids: ``[tokens]``; for a batched ``cache`` ``[batch, tokens]``.
        cache: a ``DynamicCache`` that ``model`` made of exactly ``token_ids``, from position 0.
            (Its first layer is checked against the ids; that no other model made the rest is not.
            Tokens that a sliding first layer has forgotten are read again.)
        attention_mask: ``[batch, tokens]`` of a padded batch; the padding does not travel.
        row: which sequence of the batch; needed where there are several.
        codec: how to encode; by default as the parent, and `Packed` without one.
        bits: bits per value of the whole card file. A `Tiered` codec allocates them row by row
            and comes within 2 % of it; any other is narrowed until it fits. Without it new
            tokens are encoded as finely as the parent's: at its slope (`Lagrangian`), its step
            (`Transform`), or its bits. Without a parent it is `DEFAULT_BITS`.
        scorer: for codecs with tiers: who tells what later queries look at; by default
            `AttentionScorer`.
        allocator: for codecs with tiers: who allocates the bits; by default `Lagrangian`.
        parent: the card this context went on from: its segments are kept byte for byte, and only
            the tokens after it are encoded. By default the card that ``cache`` was injected from,
            if it was; None encodes everything anew, and a lossy codec loses again.
        agent: a name for the lineage.
        ttl: seconds after which the card refuses to be used.
        salt: 64 hex digits that all digests of the card are keyed with, so that only who has them
            can tell whether two cards share a text. By default that of the parent, or of the card
            that ``cache`` was injected from.

    Raises:
        CaptureError, PromptError, UnsupportedModelError, CodecError, BudgetError, IdentityError.
    """
    if bits is not None and not 0 < bits < math.inf:
        raise BudgetError(f"bits={bits:g} bits per value; expected a number above 0.")
    if ttl is not None and not -1e9 <= ttl <= 1e9:
        raise CaptureError(f"ttl={ttl:g} seconds; expected a number of at most 1e9.")
    if (source is None) == (token_ids is None):
        raise CaptureError("give a prompt, chat messages or token_ids=, and only one of them.")
    identity = identify(model, tokenizer)  # refuses models before anything long is read
    if cache is None:
        parent = None if parent == "cache" else parent
        how = spending(codec or _inherited(parent), scorer, allocator)
        early = [how.scored_by] if how is not None and how.scored_by is not None else []
        given = tokenize(tokenizer, source) if token_ids is None else as_ids(token_ids)
        require_text(model, given)
        state = read(model, given, early)
    else:
        if token_ids is None:
            raise CaptureError("a live cache comes with token_ids=, the ids it was made of.")
        state = pick_row(model, cache, token_ids, attention_mask, row)
        if salt is None and state.card is not None and parent in (None, "cache"):
            salt = state.card.manifest.salt
        if parent == "cache":
            grown = state.card is not None and state.card.tokens < len(state.ids)
            parent = state.card if grown else None
        how = spending(codec or _inherited(parent), scorer, allocator)
    codec = codec or _inherited(parent)
    return make_card(
        state, identity, codec, how, bits, parent=parent, agent=agent, ttl=ttl, salt=salt
    )


def make_card(
    state: State,
    identity: Identity,
    codec: Codec,
    how: Spending | None,
    bits: float | None,
    *,
    parent: CacheCard | None = None,
    agent: str = "",
    ttl: float | None = None,
    salt: str | None = None,
) -> CacheCard:
    """The card of ``state``; ``how`` for codecs with tiers. Raises as `capture`."""
    start = 0 if parent is None else _require_parent(parent, state, identity)
    salt = _salt(parent, salt)
    if parent is not None and parent.thin and bits is not None:
        raise BudgetError(
            f"bits= is for the whole card, and the parent is thin: the bytes of its first "
            f"{parent.thin} segments are not at hand. Leave bits= out (the new tokens are "
            "then encoded as the parent's were), or put the parent together with card.whole(…)."
        )
    now = datetime.now(UTC)
    known = parent.manifest if parent is not None else None
    lineage = [] if known is None else list(known.lineage)
    hop = Hop(
        hop=len(lineage),
        agent=agent,
        tokens_added=len(state.ids) - start,
        parent=None if parent is None else parent.digest,
    )
    before = Before(
        now=now,
        identity=identity,
        lineage=[*lineage, hop],
        segments=[] if known is None else list(known.segments),
        tensors={} if parent is None else parent.verified(),
        ttl=ttl,
        salt=salt,
    )
    codec = codec.for_model(identity.weights)
    if how is not None and isinstance(codec, Tiered):
        return encode_tiers(state, start, before, codec, how, bits)
    if how is not None and isinstance(codec, Stepped):
        return encode_steps(state, start, before, codec, how, bits)
    return encode_alike(state, start, before, codec, bits)


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
