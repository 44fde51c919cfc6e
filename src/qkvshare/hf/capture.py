"""Capture: from what an agent has read to a card."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Literal

import numpy as np
from torch import Tensor
from transformers import Cache, PreTrainedModel, PreTrainedTokenizerBase

from ..card import Allocation, CacheCard, Hop, Identity, Manifest, Segment
from ..card.container import Array, blob_name, ids_name
from ..card.digest import EMPTY_CHAIN, digest_bytes, extend_chain
from ..card.errors import BudgetError, CaptureError
from ..codecs import Codec, Uniform, from_record
from .identity import identify
from .state import State, pick_row, read
from .tokens import Ids, Message, tokenize


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
    budget: float | None = None,
    parent: CacheCard | Literal["cache"] | None = "cache",
    agent: str = "",
    ttl: float | None = None,
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
            (Its first layer is checked against the ids; that no other model made the rest is not.)
        attention_mask: ``[batch, tokens]`` of a padded batch; the padding does not travel.
        row: which sequence of the batch; needed where there are several.
        codec: how to encode; by default as the parent, and `Uniform` at 8 bits without one.
        budget: bits per value of the whole card file; the codec is narrowed until it fits.
        parent: the card this context went on from: its segments are kept byte for byte, and only
            the tokens after it are encoded. By default the card that ``cache`` was injected from,
            if it was; None encodes everything anew, and a lossy codec loses again.
        agent: a name for the lineage.
        ttl: seconds after which the card refuses to be used.

    Raises:
        CaptureError, PromptError, UnsupportedModelError, CodecError, BudgetError, IdentityError.
    """
    identity = identify(model, tokenizer)  # refuses models before anything long is read
    state = _origin(model, tokenizer, source, token_ids, cache, attention_mask, row)
    if parent == "cache":
        grown = state.card is not None and state.card.tokens < len(state.ids)
        parent = state.card if grown else None
    start = 0 if parent is None else _require_parent(parent, state, identity)

    now = datetime.now(UTC)
    known = parent.manifest if parent is not None else None
    lineage = [] if known is None else list(known.lineage)
    hop = Hop(
        hop=len(lineage),
        agent=agent,
        tokens_added=len(state.ids) - start,
        parent=None if parent is None else parent.digest,
    )
    tensors = {} if parent is None else parent.verify()
    segments = [] if known is None else list(known.segments)
    if codec is None:
        codec = from_record(segments[-1].codec) if segments else Uniform()

    narrower: Codec | None = codec
    while narrower is not None:
        segment, new = _encode(state, start, segments, narrower, budget)
        manifest = Manifest(
            created=now.replace(microsecond=0),
            expires=None if ttl is None else now + timedelta(seconds=ttl),
            identity=identity,
            layers=state.layers,
            segments=[*segments, segment],
            lineage=[*lineage, hop],
        )
        card = CacheCard(manifest, tensors | new)
        if budget is None or card.bits_per_value <= budget:
            return card
        narrower = narrower.narrower()
    raise BudgetError(
        f"a budget of {budget:g} bits per value cannot be met: the least for these {card.tokens} "
        f"tokens is {card.bits_per_value:.3f}, header and scales included. "
        "Raise it or choose another codec."
    )


def _origin(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    source: str | Sequence[Message] | None,
    token_ids: Ids | None,
    cache: Cache | None,
    attention_mask: Tensor | None,
    row: int | None,
) -> State:
    if (source is None) == (token_ids is None):
        raise CaptureError("give a prompt, chat messages or token_ids=, and only one of them.")
    if cache is None:
        return read(model, tokenize(tokenizer, source) if token_ids is None else token_ids)
    if token_ids is None:
        raise CaptureError("a live cache comes with token_ids=, the ids it was made of.")
    return pick_row(model, cache, token_ids, attention_mask, row)


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


def _encode(
    state: State, start: int, before: list[Segment], codec: Codec, budget: float | None
) -> tuple[Segment, dict[str, Array]]:
    """One segment for the tokens from ``start`` on, behind the segments ``before``."""
    ids, index = state.ids[start:], len(before)
    tensors: dict[str, Array] = {ids_name(index): ids}
    numbers = range(len(state.layers))
    layers = (state.layer(number, start, codec.pre_rope) for number in numbers)
    for number, blob in enumerate(codec.encode(layers)):
        tensors[blob_name(number, index)] = blob
    first = [max(start, state.first(number)) for number in numbers]
    prefix = before[-1].chain if before else EMPTY_CHAIN
    segment = Segment(
        start=start,
        end=len(state.ids),
        prefix=prefix,
        chain=extend_chain(prefix, ids),
        codec=codec.record(),
        allocation=Allocation(budget=budget),
        blobs=[digest_bytes(tensors[blob_name(number, index)]) for number in numbers],
        first=first if any(at > start for at in first) else None,
    )
    return segment, tensors
