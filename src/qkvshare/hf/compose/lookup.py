"""Find the parts of a prompt that cards have, whatever stands before them."""

from __future__ import annotations

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ...card import Span
from ...card.digest import TokenIds
from ...store import Store
from ..model.identity import identify
from ..text.tokens import Ids, as_ids


def find_parts(
    store: Store,
    model: PreTrainedModel,
    prompt_ids: Ids,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> list[Span | TokenIds]:
    """A prompt as `compose` takes it: the longest prefix that a card has, then other pieces of at
    least 32 tokens, and between them ids that must be read.

    Where the store has nothing of the prompt, all of it comes back as one part of ids.

    Args:
        store: only cards that are vouched for are found, and only those of this model.
        model: that will read the prompt.
        prompt_ids: all of the prompt.
        tokenizer: the model's, if cards were captured with it.

    Raises:
        CardNotFoundError: a card was removed between two looks.
    """
    ids, identity = as_ids(prompt_ids, "prompt_ids"), identify(model, tokenizer)
    parts, at = list[Span | TokenIds](), 0
    if (match := store.match(ids, identity)) is not None:
        parts.append(Span(store.get(match.card), 0, match.tokens))
        at = match.tokens
    for piece in store.pieces(ids, identity, at):
        if piece.at > at:
            parts.append(ids[at : piece.at])
        parts.append(Span(store.get(piece.card), piece.start, piece.start + piece.tokens))
        at = piece.at + piece.tokens
    if at < len(ids):
        parts.append(ids[at:])
    return parts
