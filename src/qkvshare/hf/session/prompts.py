"""What has to be read for a prompt, and what cards have of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from transformers import Cache, PreTrainedModel, PreTrainedTokenizerBase

from ...card import Identity, Span
from ...card.digest import TokenIds
from ...card.errors import CardError, IdentityError, StoreError
from ...store import Store
from ..cache.counting import cache_in
from ..compose.compose import compose
from ..compose.lookup import find_parts
from ..compose.prove import require_composable
from ..inject.fill import go_on
from ..text.chat import Chat
from ..text.messages import Message, Tool
from .answers import Prompt
from .tiers import longest, set_aside


def named(
    store: Store,
    chat: Chat,
    identity: Identity,
    messages: Sequence[Message],
    card: str,
    tools: Sequence[Tool] = (),
) -> Prompt:
    """``messages`` behind the card of digest ``card``, or the whole conversation, if the card's
    tokens are how that begins. Raises `CardNotFoundError`, `CardError`, `IdentityError`."""
    known = store.get(card)
    if known.manifest.salt != store.salt:
        raise IdentityError(
            f"the card {card[:12]}… was kept under another salt. "
            "Send the cache_salt that it was made with."
        )
    known.require_fresh()
    known.manifest.identity.require(identity)
    # A tool's result begins no conversation, and a template may refuse it as one.
    begins = not messages or messages[0]["role"] != "tool"
    ids = chat.whole(messages, tools) if begins else np.empty(0, np.int32)
    if not np.array_equal(ids[: known.tokens], known.token_ids):
        ids = np.concatenate([known.token_ids, chat.following(messages)])
    return Prompt(ids, known, card, named=True, vouched=store.vouched(card))


def pieced(
    store: Store,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    identity: Identity,
    ids: TokenIds,
) -> Prompt:
    """``ids`` with what cards of ``store`` have of them, wherever it stands.

    Where that is no more than a beginning at whose end a segment ends, that is resumed as usual.
    Raises `UnsupportedModelError` for a model that cannot compose.
    """
    require_composable(model)
    try:
        parts = find_parts(store, model, ids, tokenizer)
    except (CardError, StoreError) as error:
        set_aside(store, None, error)
        return longest(store, ids, identity)
    beginning = longest(store, ids, identity)
    spans = [part for part in parts if isinstance(part, Span)]
    others = spans if beginning.card is None else spans[1:]
    return Prompt(ids, parts=parts) if others else beginning


def composed_cache(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: Prompt,
    cancelled: Callable[[], bool],
) -> Cache:
    """What `compose` makes of the prompt's parts. Raises as it, and `CancelledError`."""
    go_on(cancelled)
    assert prompt.parts is not None
    return cache_in(compose(model, prompt.parts, tokenizer).inputs)
