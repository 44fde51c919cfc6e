"""A store's cards near at hand: on disk (cold), as codes in memory (warm), decoded (hot)."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable
from typing import Any, Generic, Literal, Protocol, TypeVar, cast

from torch import Tensor
from transformers import Cache, PreTrainedModel, PreTrainedTokenizerBase
from transformers.cache_utils import DynamicLayer

from ...card import CacheCard
from ..inject.inject import inject
from ..text.tokens import Ids

T = TypeVar("T")
Tier = Literal["hot", "warm", "cold"]


class Source(Protocol):
    """Where cards come from: a `Store`, or what has the same `get`."""

    def get(self, digest: str) -> CacheCard:
        """The card of this digest."""


class Recent(Generic[T]):
    """What was used last, within so many bytes."""

    def __init__(self, limit: int) -> None:
        """``limit`` in bytes; what is larger by itself is never kept."""
        self.limit, self.bytes = limit, 0
        self._items: OrderedDict[Hashable, tuple[T, int]] = OrderedDict()

    def get(self, name: Hashable) -> T | None:
        """What is kept under ``name``, which is the last used now."""
        if name not in self._items:
            return None
        self._items.move_to_end(name)
        return self._items[name][0]

    def keep(self, name: Hashable, item: T, nbytes: int) -> None:
        """Keep ``item``, and let go what was not used for longest."""
        self.forget(name)
        if nbytes > self.limit:
            return
        self._items[name] = item, nbytes
        self.bytes += nbytes
        while self.bytes > self.limit:
            self.forget(next(iter(self._items)))

    def forget(self, name: Hashable) -> None:
        """Let go what is kept under ``name``, if anything is."""
        _, nbytes = self._items.pop(name, (None, 0))
        self.bytes -= nbytes


class Tiers:
    """Resume agents of one model, the ones resumed last sooner than others.

    A card that is resumed becomes warm: its bytes are in memory, verified. Resumed again while it
    is, it becomes hot: its decoded cache is kept, and copied for each receiver. A process that was
    killed begins with all of them cold, at the time of ``card-file`` in docs/results/ttft.md.
    """

    def __init__(
        self, model: PreTrainedModel, source: Source, *, hot_bytes: int, warm_bytes: int
    ) -> None:
        """``hot_bytes`` and ``warm_bytes``: room for decoded caches, and for codes."""
        self._model, self._source, self._turn = model, source, threading.Lock()
        self._hot: Recent[Cache] = Recent(hot_bytes)
        self._warm: Recent[CacheCard] = Recent(warm_bytes)

    def tier(self, digest: str) -> Tier:
        """Where the card would be resumed from now."""
        with self._turn:
            if self._warm.get(digest) is None:
                return "cold"
            return "warm" if self._hot.get(digest) is None else "hot"

    def resume(
        self, digest: str, new: str | Ids = (), *, tokenizer: PreTrainedTokenizerBase | None = None
    ) -> dict[str, Any]:
        """What `inject` gives for the card of this digest. Raises as `inject` and the store do."""
        with self._turn:
            card, held = self._warm.get(digest), self._hot.get(digest)
        if card is None:
            cold = self._source.get(digest)
            card = CacheCard(cold.manifest, cold.verified(), cold.signature)
            arguments = inject(self._model, card, new, tokenizer=tokenizer)
        else:
            if held is None:
                # One that nobody goes on from, so that it stays as it is.
                held = inject(self._model, card, card.token_ids[:1], new_only=True)[
                    "past_key_values"
                ]
            arguments = inject(self._model, card, new, tokenizer=tokenizer, held=held)
        with self._turn:
            self._warm.keep(digest, card, card.nbytes)
            if held is not None:
                self._hot.keep(digest, held, _nbytes(held))
        return arguments

    def forget(self, digest: str) -> None:
        """Let go of a card, as when it was removed from the store."""
        with self._turn:
            self._warm.forget(digest)
            self._hot.forget(digest)


def _nbytes(cache: Cache) -> int:
    # Rooms are larger than what is in them, so not their shapes but their storage counts.
    layers = cast(list[DynamicLayer], cache.layers)
    tensors = [cast(Tensor, part) for at in layers for part in (at.keys, at.values)]
    return sum(part.untyped_storage().nbytes() for part in tensors)
