"""The cache that `CacheCard.inputs` hands out. It refuses a use that gives wrong text.

``transformers`` takes any ids beside any cache. Three mistakes give other text and no error:

- A plain forward of the whole ids reads the card's tokens a second time.
- In ``generate``, penalties and n-gram bans do not see the card's tokens if they get new ids only.
- ``generate`` moves the cache on, so a second call with the same arguments reads the wrong tokens.

Assisted generation also reads the whole ids twice (``_assisted_decoding`` of transformers 5.23).
`before_first_read` mends that.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from weakref import ref

from torch import Tensor, nn
from transformers import Cache, DynamicCache
from transformers.cache_utils import CacheLayerMixin, LinearAttentionLayer

from ...card import CacheCard
from ...card.errors import PromptError
from .compressed import compresses
from .counting import CountingCache, before_first_read
from .indexer import beside
from .layers import growing_layers, numbered


@dataclass
class Use:
    """How a cache may be read.

    Attributes:
        model: the model that the cache was made for.
        kept: tokens in the cache at first.
        given: tokens in the ``input_ids`` that `inject` gave with the cache.
        new_only: ``input_ids`` has the new tokens only, for a plain forward.
        check_model: raises `IdentityError` if the model has changed since.
        fresh: nothing was read after the card yet.
        generating: ``generate`` was called, and has read nothing yet.
        guesses: it reads guesses of its own behind the new tokens, as assisted generation does.
        chunk: tokens that it reads at once of the new ones; 0 when all of them are read.
        refused: a read was refused. Some layers have read those tokens by then, see `_keeps_more`.
    """

    model: ref[nn.Module]
    kept: int
    given: int
    new_only: bool
    check_model: Callable[[], None]
    fresh: bool = True
    generating: bool = False
    guesses: bool = False
    chunk: int = 0
    refused: bool = False

    def generate(self) -> None:
        """``generate`` begins. Raises `PromptError`, `IdentityError`."""
        if self.fresh and self.new_only:
            raise PromptError(
                "the cache was injected with new_only=True, which is for a plain forward; generate "
                "needs the whole ids, since penalties and stop rules look at them. Call "
                "card.inputs without new_only."
            )
        self.check_model()
        self.generating = True

    def forward(self, count: int, seq_len: int) -> None:
        """``count`` tokens are read behind ``seq_len``. Raises `PromptError`."""
        left = self.given - seq_len
        whole = self.fresh and not (self.new_only or self.guesses)
        if whole and self.generating:
            self.chunk = count
        if left <= 0:
            self.chunk = 0
        if (whole and count > left) or (self.chunk and count != min(self.chunk, left)):
            raise PromptError(
                f"{count} tokens are read after the {seq_len} in the cache; expected the {left} "
                "that are left of input_ids. Pass all that card.inputs returns to generate; for "
                "a plain forward, use new_only=True."
            )
        # What transformers cuts out of ids that are shorter than the cache.
        again = len(range(self.given)[-left:])
        if self.generating and not self.fresh and left <= 0 and count == again:
            raise PromptError(
                f"these arguments were used before: the cache has {seq_len} tokens now, input_ids "
                f"has {self.given}. Call card.inputs again for each call of generate."
            )
        self.fresh = self.generating = False


class GuardedCache(CountingCache):
    """A ``DynamicCache`` with a `Use`, once `inject` hands it out."""

    use: Use | None = None

    @cached_property
    def _first(self) -> int:
        """The first layer that gets keys and values."""
        return next(n for n, at in enumerate(self.layers) if isinstance(at, CacheLayerMixin))

    @cached_property
    def _keeps_more(self) -> bool:
        """Whether a layer keeps something beside keys and values, or instead."""
        layers: list[Any] = self.layers
        states = any(isinstance(at, LinearAttentionLayer) or compresses(at) for at in layers)
        return states or any(map(beside, layers))

    @property
    def _is_user_defined(self) -> bool:
        return self.use is not None

    @_is_user_defined.setter
    def _is_user_defined(self, value: bool) -> None:
        # generate says so of every cache that it was given, before anything is read.
        if self.use is not None:
            if self.states_alone:  # single tokens are read without a word
                self.use.fresh &= self.seq_len == self.use.kept
            self.use.generate()
            if self._keeps_more and (model := self.use.model()) is not None:
                before_first_read(model, self)

    def began_as(self, row: int) -> tuple[CacheCard | None, int]:
        """The card that sequence ``row`` began as, and how many of its tokens are still as the
        card's bytes say."""
        return None, 0

    def read_at_once(self, count: int) -> None:
        """Raises `PromptError` where the first read is not of the new tokens."""
        if self.use is not None and self.use.fresh:
            self.use.forward(count, self.seq_len)

    def require_whole(self, given: int) -> None:
        """Raises `PromptError` also where the first ids are not those that came with the cache."""
        super().require_whole(given)
        if self.use is not None and self.use.fresh and given != self.use.given:
            raise PromptError(
                f"generate reads {given} ids, expected the {self.use.given} of input_ids. Pass all "
                "that card.inputs returns, without prefill_chunk_size."
            )

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """As ``DynamicCache.update``. Raises `PromptError`."""
        if self.use is not None and layer_idx == self._first:
            if self.use.refused and self._keeps_more:
                raise PromptError(
                    "a read of this cache was refused before, when some layers had read the wrong "
                    "tokens. Call card.inputs again."
                )
            self.use.refused = True
            self.use.forward(key_states.shape[-2], self.get_seq_length())
            self.use.refused = False
        return super().update(key_states, value_states, layer_idx, *args, **kwargs)

    def activate_past_recording(self) -> None:
        """Assisted generation begins."""
        super().activate_past_recording()  # type: ignore[no-untyped-call]
        if self.use is not None and self.use.generating:
            model = self.use.model()
            if model is not None:
                self.use.guesses = True
                before_first_read(model, self, guesses=True)


class CardCache(GuardedCache):
    """A ``DynamicCache`` that grows in place and remembers the card it began as.

    So `capture` can append to that card instead of encoding its tokens again, and knows that the
    first keys are the card's, which a lossy codec has changed; and `inject` can copy them.

    Attributes:
        card: what it was injected from.
        decoded: how many of its tokens are still as the card's bytes say.
        numbers: which of its layers a card has.
    """

    layers: list[Any]

    def __init__(
        self, card: CacheCard, decoded: int, empty: DynamicCache, numbers: list[int]
    ) -> None:
        """With the layers of an ``empty`` cache of the model, in kinds that grow in place."""
        # Not as DynamicCache, which makes layers of its own.
        Cache.__init__(self, layers=growing_layers(empty, numbers))
        self.numbers = numbers
        self.card, self.decoded = card, decoded

    def began_as(self, row: int) -> tuple[CacheCard | None, int]:
        """As `GuardedCache.began_as`; the same for all rows."""
        return self.card, self.decoded

    @property
    def of_card(self) -> list[Any]:
        """Those of its layers that a card has, in the card's order."""
        return numbered(self, self.numbers)

    def crop(self, *arguments: Any, **named: Any) -> None:
        """As ``DynamicCache.crop``; what is read again after it is not the card's any more."""
        super().crop(*arguments, **named)
        self.decoded = min(self.decoded, self.get_seq_length())
