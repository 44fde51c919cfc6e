"""The cache that `inject` hands out."""

from __future__ import annotations

from typing import Any

from transformers import DynamicCache

from ..card import CacheCard


class CardCache(DynamicCache):
    """A ``DynamicCache`` that remembers the card it began as.

    So `capture` can append to that card instead of encoding its tokens again, and knows that the
    first keys are the card's, which a lossy codec has changed.
    """

    def __init__(self, card: CacheCard, **arguments: Any) -> None:
        """Empty; ``arguments`` as for ``DynamicCache``."""
        super().__init__(**arguments)
        self.card = card
