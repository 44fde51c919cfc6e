"""The hand-off that every evaluation measures: a real card, written to disk and read back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qkvshare.card import CacheCard
from qkvshare.card.digest import TokenIds
from qkvshare.codecs import Codec
from qkvshare.hf.capture.capture import make_card
from qkvshare.hf.capture.reading import read
from qkvshare.hf.capture.salience import look_back
from qkvshare.hf.capture.state import State
from qkvshare.hf.capture.strategy import scorer_of
from qkvshare.hf.model.identity import identify
from qkvshare.scoring import Scorer


@dataclass(frozen=True)
class Setting:
    """A codec, with its scorer and allocator, and the bits per value of its card."""

    codec: Codec
    bits: float | None = None

    @property
    def asked(self) -> Scorer | None:
        """The scorer that is really asked."""
        return scorer_of(self.codec)


def read_context(model: Any, ids: Sequence[int], settings: Sequence[Setting]) -> State:
    """Prefill, at full precision; every scorer of ``settings`` is asked once."""
    asked = {scorer for setting in settings if (scorer := setting.asked) is not None}
    state = read(model, ids, list(asked))
    late = {scorer: look_back(state, scorer, state.ids) for scorer in asked if scorer.rereads}
    return replace(state, scores={**state.scores, **late})


def hand_over(
    state: State, settings: Sequence[Setting], folder: Path, focus: TokenIds | None = None
) -> Iterator[CacheCard]:
    """The card of one context under each setting, as the receiver loads it from ``folder``.

    With ``focus``, the receiver's question, scorers say what that looks at, instead of what a
    sample of the context does.
    """
    identity = identify(state.model)
    for setting in settings:
        if focus is not None and setting.asked is not None:
            seen = look_back(state, setting.asked, focus)
            state = replace(state, scores={**state.scores, setting.asked: seen})
        card = make_card(state, identity, setting.codec, setting.bits)
        yield CacheCard.load(card.save(folder / "card"))


def log_probabilities(model: Any, **arguments: Any) -> Tensor:
    """Log probabilities ``[tokens, vocabulary]`` after each token of the only sequence."""
    with torch.no_grad():
        return torch.log_softmax(model(**{"use_cache": True} | arguments).logits[0].float(), dim=-1)
