"""A part of a card, to be used behind another prompt."""

from __future__ import annotations

from dataclasses import dataclass

from .card import CacheCard
from .digest import TokenIds
from .errors import PromptError


@dataclass(frozen=True)
class Span:
    """Tokens ``[start, end)`` of ``card``; to its last one by default.

    Raises `PromptError` where the card has no such tokens.
    """

    card: CacheCard
    start: int = 0
    end: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.stop <= self.card.tokens:
            raise PromptError(
                f"tokens {self.start} to {self.stop} of a card of {self.card.tokens} tokens; "
                "expected at least one token that the card has."
            )

    @property
    def stop(self) -> int:
        """The token behind the last one."""
        return self.card.tokens if self.end is None else self.end

    @property
    def token_ids(self) -> TokenIds:
        """Those of the span."""
        return self.card.token_ids[self.start : self.stop]

    def __len__(self) -> int:
        return self.stop - self.start
