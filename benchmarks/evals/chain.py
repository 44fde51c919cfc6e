"""Agents in a chain over one growing context, with a real hand-off between any two.

Two policies: ``append`` keeps the bytes of what was handed over before and encodes only what is
new, as finely; so the first card has the budget, and later ones somewhat more. ``requantize``
decodes everything and encodes everything again at each hop, as systems do that keep no card; every
card has the budget.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from qkvshare.card import CacheCard
from qkvshare.card.engine import Inputs
from qkvshare.codecs import Codec, from_record
from qkvshare.hf.capture.capture import make_card
from qkvshare.hf.capture.live import pick_row
from qkvshare.hf.capture.reading import read
from qkvshare.hf.capture.state import State
from qkvshare.hf.capture.strategy import with_strategy
from qkvshare.hf.model.identity import identify

from .handoff import Setting, log_probabilities

POLICIES = ("append", "requantize")


@dataclass(frozen=True)
class Mode:
    """How one chain of agents hands over."""

    setting: Setting
    policy: str = "append"

    @property
    def carded(self) -> Setting | None:
        """The setting, where cards are made."""
        return None if self.policy == "words" else self.setting


def spend(mode: Mode, parent: CacheCard | None) -> tuple[Codec, float | None]:
    """What a hand-off encodes with: ``mode``'s codec and budget, or as finely as ``parent``."""
    codec = mode.setting.codec
    if parent is None:
        return codec, mode.setting.bits
    scorer, allocator = (getattr(codec, name, None) for name in ("scorer", "allocator"))
    return with_strategy(from_record(parent.manifest.segments[-1].codec), scorer, allocator), None


@dataclass(frozen=True)
class Preamble:
    """What several chains begin with: read once, and encoded once for each mode.

    Attributes:
        state: at full precision, as the first agent has it.
        cards: of modes that append; and the caches that they are decoded to.
    """

    state: State
    cards: dict[Mode, tuple[CacheCard, DynamicCache]]

    @classmethod
    def of(cls, model: Any, ids: Sequence[int], modes: Sequence[Mode]) -> Preamble:
        """Read ``ids``."""
        state, cards = read(model, ids), {}
        for mode in modes:
            if mode.policy == "append":
                at = mode.setting
                card = make_card(state, identify(model), at.codec, at.bits)
                # Any token will do: the cache is wanted, not what comes after it.
                cache = card.inputs(model, new=ids[:1], new_only=True)["past_key_values"]
                cards[mode] = card, cache
        return cls(state, cards)


@dataclass
class AgentChain:
    """One chain of agents; ``mode`` None: all in one full-precision cache.

    Attributes:
        ids: what is in the cache.
        cache: of the agent whose turn it is.
        card: what this agent got, if anything.
        cached: a cache of the card's first segments, which the next agent has besides.
        state: what the first agent read, with what scorers said of it, until it reads on.
        unread: tokens that the agent before has said, but not read itself.
    """

    model: Any
    mode: Mode | None
    folder: Path
    ids: list[int]
    cache: DynamicCache
    card: CacheCard | None = None
    cached: DynamicCache | None = None
    state: State | None = None
    unread: list[int] = field(default_factory=list)
    handed_over: bool = False

    @classmethod
    def after(cls, state: State, mode: Mode | None, folder: Path) -> AgentChain:
        """A chain whose first agent has read what ``state`` says."""
        return cls(state.model, mode, folder, state.ids.tolist(), state.cache(), state=state)

    @classmethod
    def behind(cls, preamble: Preamble, mode: Mode | None, folder: Path) -> AgentChain:
        """A chain whose first agent has read the preamble, which is encoded already."""
        chain = cls.after(preamble.state, mode, folder)
        if mode is not None and mode in preamble.cards:
            chain.card, chain.cached = preamble.cards[mode]
        return chain

    def hand_over(self) -> None:
        """To the next agent."""
        if self.mode is None:
            return
        state = self.state or pick_row(self.model, self.cache, self.ids)
        parent = self.card if self.mode.policy == "append" else None
        codec, bits = spend(self.mode, parent)
        card = make_card(state, identify(self.model), codec, bits, parent=parent)
        self.card = CacheCard.load(card.save(self.folder / "card"))
        self.handed_over = True

    @property
    def bits_per_value(self) -> float:
        """Of the last card; of the model's numbers where there was no hand-off."""
        if self.mode is None or self.card is None:
            return float(8 * self.model.dtype.itemsize)
        return self.card.bits_per_value

    def read(self, ids: Sequence[int]) -> None:
        """Go on by ``ids``, behind those unread."""
        arguments = self._arguments(ids)
        with torch.no_grad():
            self.model(**arguments, logits_to_keep=1)
        self.ids += arguments["input_ids"][0].tolist()

    def score(self, ids: Sequence[int]) -> Tensor:
        """As `read`; log probabilities ``[tokens, vocabulary]`` after each token read."""
        arguments = self._arguments(ids)
        found = log_probabilities(self.model, **arguments)
        self.ids += arguments["input_ids"][0].tolist()
        return found

    def receive(self, ids: Sequence[int]) -> DynamicCache:
        """The next agent's cache, before it reads ``ids``."""
        cache: DynamicCache = self._arguments(ids)["past_key_values"]
        return cache

    def _arguments(self, ids: Sequence[int], new_only: bool = True) -> Inputs:
        new, self.unread, self.state = [*self.unread, *ids], [], None
        if self.handed_over:
            assert self.card is not None
            arguments = self.card.inputs(self.model, new=new, cached=self.cached, new_only=new_only)
            # What is decoded once stays decoded, whoever of the chain reads on from it.
            self.cache = self.cached = arguments["past_key_values"]
            self.handed_over = False
            return arguments
        device, given = self.model.device, new if new_only else [*self.ids, *new]
        return {
            "input_ids": torch.tensor([given], device=device),
            "attention_mask": torch.ones(
                1, len(self.ids) + len(new), dtype=torch.long, device=device
            ),
            "past_key_values": self.cache,
            "use_cache": True,
        }
