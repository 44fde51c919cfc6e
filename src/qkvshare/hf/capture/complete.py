"""Complete a cache: let the model read the ids that the cache lacks."""

from __future__ import annotations

from collections.abc import Callable

import torch
from transformers import Cache, PreTrainedModel

from ...card.errors import CancelledError
from ..text.tokens import Ids, as_ids

_PIECE = 512  # tokens read at once, between which a caller can call it off


def complete(
    model: PreTrainedModel,
    cache: Cache,
    ids: Ids,
    cancelled: Callable[[], bool] = lambda: False,
) -> None:
    """Let ``model`` read those of ``ids`` that ``cache`` lacks, so that it has all of them.

    After ``generate`` that is the last sampled token: it was returned, and never read.

    Args:
        model: the model that made the cache.
        cache: of the first of ``ids``, one sequence; it grows.
        ids: all token ids from the start of the context, ``[tokens]`` or ``[1, tokens]``.
        cancelled: asked before each 512 tokens, and at the end.

    Raises:
        PromptError: ``ids`` are not one sequence.
        CancelledError: ``cancelled`` said so.
    """
    rest = torch.from_numpy(as_ids(ids)[cache.get_seq_length() :]).long()[None]
    for piece in rest.to(model.device).split(_PIECE, dim=1):  # type: ignore[no-untyped-call]
        if cancelled():
            break
        if piece.shape[1]:
            with torch.no_grad():
                model(input_ids=piece, past_key_values=cache, use_cache=True, logits_to_keep=1)
    if cancelled():
        raise CancelledError("reading was called off.")
