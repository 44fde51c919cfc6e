"""What `qkvshare.card.engine` finds: cards and models of transformers."""

from __future__ import annotations

from typing import Any

import torch

from ..card import CacheCard
from ..card.errors import CaptureError
from .capture.capture import capture
from .inject.inject import inject as inputs

__all__ = ["extend", "inputs"]


def extend(
    card: CacheCard, model: Any, out: Any, *, agent: str = "", bits: float | None = None
) -> CacheCard:
    """`CacheCard.extend`."""
    cache, ids = getattr(out, "past_key_values", None), getattr(out, "sequences", None)
    if cache is None or ids is None:
        raise CaptureError(
            f"out is a {type(out).__name__} without a cache; expected what model.generate returns "
            "with return_dict_in_generate=True."
        )
    if getattr(getattr(cache, "card", None), "digest", None) != card.digest:
        raise CaptureError(
            "out was not generated from this card. Pass card.inputs(...) of the same card on to "
            "model.generate."
        )
    with torch.no_grad():  # generate has not read its own last token
        model(input_ids=ids[:, cache.get_seq_length() :], past_key_values=cache, use_cache=True)
    return capture(model, token_ids=ids, cache=cache, agent=agent, bits=bits)
