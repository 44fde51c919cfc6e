"""From a prompt to the card in a store that it begins like, and to the cache of that card.

Cards near at hand are on disk (cold), as codes in memory (warm), or decoded (hot).
"""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Generic, Literal, NamedTuple, TypeVar

from transformers import Cache, PreTrainedModel, PreTrainedTokenizerBase

from ...card import CacheCard, Identity
from ...card.container import Array, LazyTensors, kind_of
from ...card.digest import TokenIds
from ...card.errors import CardError, StoreError
from ...store import Store
from ..cache.counting import cache_in
from ..cache.growing import STEP
from ..inject.inject import inject
from .answers import Prompt

T = TypeVar("T")
Tier = Literal["hot", "warm", "cold"]


class Name(NamedTuple):
    """The first ``tokens`` tokens of the card with this digest, which no other content can have."""

    digest: str
    tokens: int


class Recent(Generic[T]):
    """What was used last, within so many bytes."""

    def __init__(self, limit: int) -> None:
        """``limit`` in bytes; what is larger by itself is never kept."""
        self.limit, self.bytes = limit, 0
        self._items: OrderedDict[Name, tuple[T, int]] = OrderedDict()

    def get(self, name: Name) -> T | None:
        """What is kept under ``name``, which is the last used now."""
        if name not in self._items:
            return None
        self._items.move_to_end(name)
        return self._items[name][0]

    def keep(self, name: Name, item: T, nbytes: int) -> None:
        """Keep ``item``, and let go what was not used for longest."""
        _, freed = self._items.pop(name, (None, 0))
        self.bytes -= freed
        if nbytes > self.limit:
            return
        self._items[name] = item, nbytes
        self.bytes += nbytes
        while self.bytes > self.limit:
            _, (_, freed) = self._items.popitem(last=False)
            self.bytes -= freed


class Tiers:
    """Resumes the cards of one model; those that were resumed last take less time.

    A card becomes warm when it is resumed or kept: its bytes stay in memory, and each use verifies
    them. A warm card that is resumed becomes hot: its decoded cache stays, too, and each receiver
    gets a copy. A new process begins with all cards cold. One thread at a time.
    """

    def __init__(self, hot_bytes: int, warm_bytes: int) -> None:
        """``hot_bytes`` and ``warm_bytes``: the most that decoded caches, and codes, may take."""
        self._hot: Recent[Cache] = Recent(hot_bytes)
        self._warm: Recent[CacheCard] = Recent(warm_bytes)

    def tier(self, name: Name) -> Tier:
        """From where the card would be resumed now."""
        if self._warm.get(name) is None:
            return "cold"
        return "warm" if self._hot.get(name) is None else "hot"

    def keep(self, card: CacheCard) -> None:
        """Make a card warm whose bytes are in memory."""
        self._warm.keep(Name(card.digest, card.tokens), card, card.nbytes)

    def resume(
        self,
        model: PreTrainedModel,
        name: Name,
        card: CacheCard,
        prompt_ids: TokenIds,
        tokenizer: PreTrainedTokenizerBase,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> Cache:
        """The cache that `inject` makes of ``card`` for the whole prompt. Raises as `inject`."""
        warm, hot = self._warm.get(name), self._hot.get(name)
        more = prompt_ids[card.tokens :]
        nbytes = _decoded_bytes(model, card)
        # A cache with states has one token less than the card: nothing of it can be copied.
        copied = len(more) and not card.manifest.states
        if warm is not None and hot is None and copied and nbytes <= self._hot.limit:
            # A cache of its own, which nobody goes on from, so that it stays as it is.
            made = inject(warm, model, new=more[:1], new_only=True, cancelled=cancelled)
            hot = cache_in(made)
            self._hot.keep(name, hot, nbytes)
        if warm is None:
            warm = CacheCard(card.manifest, Remembered(card.tensors), card.signature)
        arguments = inject(
            warm, model, tokenizer, prompt_ids=prompt_ids, cached=hot, cancelled=cancelled
        )
        self._warm.keep(name, warm, warm.nbytes)
        return cache_in(arguments)


class Remembered(LazyTensors):
    """Tensors that stay in memory once they were read."""

    def __init__(self, source: Mapping[str, Array]) -> None:
        """Read ``source``, each of its tensors once."""
        self._source, self._read = source, dict[str, Array]()
        self.kinds = {name: kind_of(source, name) for name in source}

    def __getitem__(self, name: str) -> Array:
        if name not in self._read:
            self._read[name] = self._source[name]
        return self._read[name]


def _decoded_bytes(model: PreTrainedModel, card: CacheCard) -> int:
    """Bytes of the cache that `inject` makes of a card, at most."""
    values = card.values // card.tokens * (card.tokens + STEP)
    return int(values * model.dtype.itemsize)


def longest(store: Store, ids: TokenIds, identity: Identity) -> Prompt:
    """``ids``, with the store's card of their longest beginning, if there is one.

    A card that cannot be read is set aside, see `Store.set_aside`.
    """
    found = None
    try:
        found = store.match(ids, identity)
        if found is not None:
            return Prompt(ids, store.get(found.card, found.tokens), found.card)
    except (CardError, StoreError) as error:
        set_aside(store, None if found is None else found.card, error)
    return Prompt(ids)


def set_aside(store: Store | None, digest: str | None, error: Exception) -> None:
    """Keep prompts from finding a card that cannot be used, and warn of it."""
    warnings.warn(f"the text is read again, its card cannot be used: {error}", stacklevel=3)
    if store is not None and digest is not None:
        with suppress(StoreError):
            store.set_aside(digest)
