"""What a session is asked, and its answer."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

from transformers import Cache

from ...card import CacheCard, Span
from ...card.digest import TokenIds
from ..compose.compose import ComposedCache
from ..tools.calls import ToolCall

Reuse = Literal["exact", "compose"]


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen, and when to end; ``temperature`` 0 is greedy.

    ``top_k``, ``min_p`` and ``repetition_penalty`` are the model's own where they are None.
    """

    max_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()


@dataclass(frozen=True)
class Keep:
    """How an answered conversation is kept as a card.

    Attributes:
        agent: a name for the card's lineage.
        bits: per value of its file.
        ttl: seconds after which it refuses to be used.
        waits_on: the tool that the agent calls now, if it does; by default the first one that the
            answer calls. The store learns how long each tool
            takes (`Store.hold`): while it is worth waiting the card is the last to be evicted, and
            then the first. The wait ends when the card is asked for.
    """

    agent: str = ""
    bits: float | None = None
    ttl: float | None = None
    waits_on: str | None = None


@dataclass(frozen=True)
class Prompt:
    """All ``ids`` that the model is to go on from, and the card that has the first of them.

    Attributes:
        found: digest of the card in the store; ``card`` may be the beginning of it.
        named: the card was asked for, so that reading its text instead would not do.
        vouched: what grows from the card may be found by prompts, see `Store.put`.
        parts: what cards have of it anywhere, and ids between that, for `qkvshare.compose`.
    """

    ids: TokenIds
    card: CacheCard | None = None
    found: str | None = None
    named: bool = False
    vouched: bool = True
    parts: list[Span | TokenIds] | None = None


@dataclass
class Answer:
    """What was generated, and what it took.

    Attributes:
        finish: why it ended.
        card, card_bytes: digest and size of the card that was kept, if one was.
        prompt_tokens, cached_tokens, new_tokens: of the prompt, of it from cards, generated.
        composed_tokens: of the cached ones, those that stood behind something else in their card.
        repaired_tokens: those of cards that were computed anew, and are not among the cached ones.
        calls: of tools, which ``text`` does not have.
        stages_ms: ``inject``, ``read``, ``first`` (both, and the first token), ``say``, ``keep``.
    """

    text: str
    finish: Literal["stop", "length", "tool_calls", "cancelled"]
    prompt_tokens: int
    cached_tokens: int
    new_tokens: int = 0
    composed_tokens: int = 0
    repaired_tokens: int = 0
    card: str | None = None
    card_bytes: int = 0
    stages_ms: dict[str, float] = field(default_factory=dict)
    calls: list[ToolCall] = field(default_factory=list)

    def count(self, cache: Cache) -> None:
        """Take down what ``cache`` has of the prompt."""
        self.cached_tokens = int(cache.get_seq_length())
        if isinstance(cache, ComposedCache):
            self.composed_tokens, self.repaired_tokens = cache.taken, cache.repaired
            self.cached_tokens -= cache.repaired + cache.read

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Note how long a stage takes, whatever its end is."""
        begun = time.perf_counter()
        try:
            yield
        finally:
            self.stages_ms[stage] = 1e3 * (time.perf_counter() - begun)
