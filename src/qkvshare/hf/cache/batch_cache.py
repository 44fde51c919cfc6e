"""The cache of several agents, each of whose rows began as a card of its own."""

from __future__ import annotations

from typing import Any

from torch import LongTensor, Tensor
from transformers import PreTrainedModel

from ...card import CacheCard
from .card_cache import GuardedCache


class BatchCache(GuardedCache):
    """A `GuardedCache` that remembers the card of each row, as `CardCache` does its one card.

    Padding stands before the shorter cards, so all of them end at the same column.

    Attributes:
        rows: the card of each row, and how many of its tokens the row began with.
        begun: columns that the rows began with.
        kept: how many of them were never cut off.
    """

    def __init__(
        self, model: PreTrainedModel, rows: list[tuple[CacheCard | None, int]], begun: int
    ) -> None:
        """Without keys and values yet."""
        super().__init__(model)
        self.rows, self.begun, self.kept = rows, begun, begun

    def began_as(self, row: int) -> tuple[CacheCard | None, int]:
        """As `GuardedCache.began_as`."""
        card, decoded = self.rows[row]
        return card, max(0, decoded - (self.begun - self.kept))

    def crop(self, *arguments: Any, **named: Any) -> None:
        """As ``DynamicCache.crop``; what is read again after it is not the cards' any more."""
        super().crop(*arguments, **named)
        self.kept = min(self.kept, self.get_seq_length())

    def reorder_cache(self, beam_idx: LongTensor) -> None:
        """As ``DynamicCache.reorder_cache``."""
        super().reorder_cache(beam_idx)
        self._pick(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        """As ``DynamicCache.batch_select_indices``."""
        super().batch_select_indices(indices)
        self._pick(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """As ``DynamicCache.batch_repeat_interleave``."""
        super().batch_repeat_interleave(repeats)
        self.rows = [row for row in self.rows for _ in range(repeats)]

    def _pick(self, indices: Tensor) -> None:
        self.rows = [self.rows[at] for at in indices.tolist()]
