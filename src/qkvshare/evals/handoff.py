"""The hand-off that every evaluation measures: a real card, written to disk and read back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from ..allocators import Allocator
from ..card import CacheCard
from ..codecs import Codec
from ..hf.capture import capture
from ..scorers import Scorer


@dataclass(frozen=True)
class Setting:
    """A codec, the bits per value of its card, and how they are spent (codecs with tiers)."""

    codec: Codec
    budget: float | None = None
    allocator: Allocator | None = None
    scorer: Scorer | None = None


def read_context(model: Any, ids: Sequence[int]) -> DynamicCache:
    """Prefill; the cache at full precision."""
    cache = DynamicCache(config=model.config)
    tokens = torch.tensor([ids], device=model.device)
    with torch.no_grad():
        model(input_ids=tokens, past_key_values=cache, use_cache=True, logits_to_keep=1)
    return cache


def hand_over(
    model: Any, ids: Sequence[int], cache: DynamicCache, settings: Sequence[Setting], folder: Path
) -> Iterator[CacheCard]:
    """The card of one context under each setting, as the receiver loads it from ``folder``."""
    for setting in settings:
        card = capture(
            model,
            token_ids=ids,
            cache=cache,
            codec=setting.codec,
            budget=setting.budget,
            allocator=setting.allocator,
            scorer=setting.scorer,
        )
        yield CacheCard.load(card.save(folder / "card"))


def log_probabilities(model: Any, **arguments: Any) -> Tensor:
    """Log probabilities ``[tokens, vocabulary]`` after each token of the only sequence."""
    with torch.no_grad():
        return torch.log_softmax(model(**arguments, use_cache=True).logits[0].float(), dim=-1)
