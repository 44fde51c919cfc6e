"""The cache that `inject` hands out."""

from __future__ import annotations

from typing import Any

from transformers import DynamicCache

from ..card import CacheCard
from .room import growing


class CardCache(DynamicCache):
    """A ``DynamicCache`` that grows in place and remembers the card it began as.

    So `capture` can append to that card instead of encoding its tokens again, and knows that the
    first keys are the card's, which a lossy codec has changed; and `inject` can take them over.

    Attributes:
        card: what it was injected from.
        decoded: how many of the tokens that it holds are still as the card's bytes say.
    """

    def __init__(self, card: CacheCard, decoded: int, **arguments: Any) -> None:
        """Empty; ``arguments`` as for ``DynamicCache``."""
        super().__init__(**arguments)
        self.layers: list[Any] = [growing(layer) for layer in self.layers]
        self.card, self.decoded = card, decoded

    def crop(self, *arguments: Any, **named: Any) -> None:
        """As ``DynamicCache.crop``; what is read again after it is not the card's any more."""
        super().crop(*arguments, **named)
        self.decoded = min(self.decoded, self.get_seq_length())
