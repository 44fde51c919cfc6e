"""Let a model read what its cache lacks."""

from __future__ import annotations

from collections.abc import Callable

import torch
from transformers import Cache, PreTrainedModel
from transformers.cache_utils import CacheLayerMixin

from ...card.digest import TokenIds
from ...card.errors import CancelledError, CaptureError
from ..text.tokens import Ids, as_ids
from .counting import as_argument
from .observe import observe, positions

_PIECE = 512  # tokens read at once, between which a caller can call it off


def complete(
    model: PreTrainedModel,
    cache: Cache,
    ids: Ids,
    cancelled: Callable[[], bool] = lambda: False,
) -> None:
    """Let ``model`` read those of ``ids`` that ``cache`` lacks, so that it has all of them.

    After ``generate`` that is the last sampled token: it was returned, and never read. ``ids`` are
    of the whole context, ``[tokens]`` or ``[1, tokens]``. ``cancelled`` is asked before each 512
    tokens, and at the end. Raises `PromptError` for more than one sequence, `CancelledError`, and
    `CaptureError` for a cache that does not say how many tokens it has.
    """
    rest = as_ids(ids)
    attention = [layer for layer in cache.layers if isinstance(layer, CacheLayerMixin)]
    if not cache.get_seq_length() and any(layer.get_seq_length() for layer in attention):
        raise CaptureError(
            f"the {type(cache).__name__} has read tokens and says that it has none, as its first "
            "layer holds a state. Capture the token ids instead, which reads them."
        )
    at, stepwise = cache.get_seq_length(), observe(model).stepwise
    while at < len(rest) and not cancelled():
        piece = rest[at : at + (1 if stepwise and at else _PIECE)]
        forward(model, cache, piece)
        at += len(piece)
    if cancelled():
        raise CancelledError("reading was called off.")


def forward(model: PreTrainedModel, cache: Cache, ids: TokenIds) -> None:
    """Let ``model`` read ``ids`` at once, behind what ``cache`` has."""
    tokens = torch.from_numpy(ids).long()[None].to(model.device)
    more = positions(model, cache.get_seq_length(), len(ids))
    with torch.no_grad():
        # One row of logits: the vocabulary projection of the others would be thrown away.
        model(
            input_ids=tokens,
            use_cache=True,
            logits_to_keep=1,
            **as_argument(model, cache),
            **more,
        )
