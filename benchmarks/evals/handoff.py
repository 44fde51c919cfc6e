"""The hand-off that every evaluation measures: a real card, written to disk and read back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qkvshare.allocators import Allocator
from qkvshare.card import CacheCard
from qkvshare.card.digest import TokenIds
from qkvshare.codecs import Codec
from qkvshare.hf.capture.allocate import Spending, look_back, spending
from qkvshare.hf.capture.capture import make_card
from qkvshare.hf.capture.state import State, read
from qkvshare.hf.model.identity import identify
from qkvshare.scorers import Scorer, parts_of


@dataclass(frozen=True)
class Setting:
    """A codec, the bits per value of its card, and how they are spent."""

    codec: Codec
    budget: float | None = None
    allocator: Allocator | None = None
    scorer: Scorer | None = None

    def spending(self, focus: TokenIds | None = None) -> Spending | None:
        """As capture would spend; ``focus`` where a scorer is asked."""
        how = spending(self.codec, self.scorer, self.allocator, None)
        if focus is None or how is None or how.scored_by is None:
            return how
        return spending(self.codec, self.scorer, self.allocator, focus)


def read_context(model: Any, ids: Sequence[int], settings: Sequence[Setting]) -> State:
    """Prefill, at full precision; every scorer of ``settings`` is asked once."""
    spenders = [how for setting in settings if (how := setting.spending()) is not None]
    asked = {part for how in spenders if how.scored_by for part in parts_of(how.scored_by)}
    state = read(model, ids, list(asked))
    late = {scorer: look_back(state, scorer, state.ids) for scorer in asked if scorer.rereads}
    return replace(state, scores={**state.scores, **late})


def hand_over(
    state: State, settings: Sequence[Setting], folder: Path, focus: TokenIds | None = None
) -> Iterator[CacheCard]:
    """The card of one context under each setting, as the receiver loads it from ``folder``."""
    identity = identify(state.model)
    for setting in settings:
        how = setting.spending(focus)
        card = make_card(state, identity, setting.codec, how, setting.budget)
        yield CacheCard.load(card.save(folder / "card"))


def log_probabilities(model: Any, **arguments: Any) -> Tensor:
    """Log probabilities ``[tokens, vocabulary]`` after each token of the only sequence."""
    with torch.no_grad():
        return torch.log_softmax(model(**{"use_cache": True} | arguments).logits[0].float(), dim=-1)
