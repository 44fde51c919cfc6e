"""Where each part of a composition comes to stand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ...card import CacheCard, Span
from ...card.digest import TokenIds
from ...card.errors import PromptError
from ..text.tokens import Ids, as_ids, following, ids_of, require_length, require_vocabulary

Part = str | Ids | Span | CacheCard


@dataclass(frozen=True)
class Placed:
    """A span, and the position of its first token in the composition."""

    span: Span
    at: int

    @property
    def moved(self) -> int:
        """By how many positions."""
        return self.at - self.span.start


@dataclass(frozen=True)
class Layout:
    """Parts, one behind the other.

    Attributes:
        ids: of all parts.
        spans: those that come from cards, in order.
        cached: how many of the first tokens the composed cache has: to the end of the last span,
            but never all, since a model goes on from a token that it reads.
        taken: whether each of them comes from a card ``[cached]``.
        exact: how many of the first tokens stand behind what they had in their cards.
    """

    ids: TokenIds
    spans: list[Placed]
    cached: int
    taken: npt.NDArray[np.bool_]
    exact: int

    @classmethod
    def of(
        cls,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None,
        parts: Sequence[Part],
    ) -> Layout:
        """Raises `PromptError` for parts without a card, or that the model cannot read."""
        spans, whole, exact = list[Placed](), np.empty(0, np.int32), 0
        for part in parts:
            at, as_before = len(whole), exact == len(whole)
            if isinstance(part, CacheCard | Span):
                span = part if isinstance(part, Span) else Span(part)
                as_before &= np.array_equal(span.card.token_ids[: span.start], whole)
                spans.append(Placed(span, at))
                whole = np.concatenate([whole, span.token_ids])
            else:
                whole = np.concatenate([whole, _ids(tokenizer, part, first=at == 0)])
            exact = len(whole) if as_before else exact
        if not spans:
            raise PromptError(
                "no part is a card or a Span of one, so there is nothing to compose. Give the text "
                "to the model."
            )
        require_vocabulary(model, whole, "composition")
        require_length(model, len(whole))
        cached = min(spans[-1].at + len(spans[-1].span), len(whole) - 1)
        taken = np.zeros(cached, bool)
        for placed in spans:
            taken[placed.at : placed.at + len(placed.span)] = True
        return cls(whole, spans, cached, taken, min(exact, cached))

    @property
    def left(self) -> TokenIds:
        """What is read behind the composition."""
        return self.ids[self.cached :]

    @property
    def seams(self) -> list[int]:
        """Where spans begin that stood behind something else, before ``cached``."""
        found = []
        for before, placed in zip([None, *self.spans], self.spans, strict=False):
            if self.exact <= placed.at < self.cached and not _joined(before, placed):
                found.append(placed.at)
        return found


def _joined(before: Placed | None, placed: Placed) -> bool:
    """Whether two spans stand one behind the other in a card, and here."""
    if before is None:
        return False
    one, other = before.span, placed.span
    end = before.at + len(one)
    return one.card is other.card and (one.stop, end) == (other.start, placed.at)


def _ids(tokenizer: PreTrainedTokenizerBase | None, part: str | Ids, first: bool) -> TokenIds:
    if len(part) == 0:
        return np.empty(0, np.int32)
    if isinstance(part, str):
        return ids_of(tokenizer, part) if first else following(tokenizer, part)
    return as_ids(part, "a part")
