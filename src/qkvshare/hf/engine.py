"""What `qkvshare.card.engine` finds: cards and models of transformers."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedModel

from ..card import CacheCard
from ..card.errors import CaptureError
from .cache.complete import complete
from .cache.states import states_batch
from .capture.capture import capture_cache
from .inject.inject import inject as inputs

__all__ = ["extend", "inputs"]


def extend(
    card: CacheCard, model: PreTrainedModel, out: Any, *, agent: str = "", bits: float | None = None
) -> CacheCard:
    """`CacheCard.extend`. Raises `CaptureError` and what `capture_cache` raises."""
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
    rows = max([len(ids), states_batch(cache), *(len(layer.keys) for layer in cache.of_card)])
    if rows > 1:
        raise CaptureError(
            f"out has {rows} sequences or beams, and a card is of one. Generate without num_beams= "
            "and num_return_sequences=, or pick one with capture_cache(…, row=)."
        )
    complete(model, cache, ids)
    return capture_cache(model, cache, ids, agent=agent, bits=bits)
