"""Compose: a cache of parts of cards and of text, in any order, behind any prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ...card import CacheCard
from ...card.engine import Inputs
from ...card.errors import CaptureError
from ..cache.card_cache import GuardedCache
from ..cache.layers import attach, growing_layers, numbered
from ..cache.observe import observe
from ..inject.inject import arguments_of
from ..model.text_only import forget_positions, require_text
from .composition import Composition
from .layout import Layout, Part
from .place import place
from .prove import require_composable
from .repairs import First, Repair
from .trial import expected_loss


class ComposedCache(GuardedCache):
    """A `GuardedCache` whose tokens did not all see what stands before them: no card is made of
    it, since a card says what a model makes of a text.

    Attributes:
        taken, repaired, read: as in `Composed`.
    """

    taken = repaired = read = 0

    def began_as(self, row: int) -> tuple[CacheCard | None, int]:
        """Raises `CaptureError`."""
        raise CaptureError(
            "the cache was composed of parts that were read behind something else, and a card of "
            "it would be no card of this text. Capture the token ids, which reads them."
        )


@dataclass(frozen=True)
class Composed:
    """What `compose` gives.

    Attributes:
        inputs: arguments of ``model.generate``, as `CacheCard.inputs` gives them.
        exact: tokens taken over that stand behind the same tokens as in their card.
        taken: other tokens taken over as they are.
        repaired: tokens of cards that were computed anew.
        read: tokens of text that were computed.
        left: tokens that ``generate`` reads itself.
        expected_loss: KL in nats per token that a part of 64 to 128 tokens lost when this model
            object was tried, with the default repair; None before a part was long enough.
    """

    inputs: Inputs
    exact: int
    taken: int
    repaired: int
    read: int
    left: int
    expected_loss: float | None


def compose(
    model: PreTrainedModel,
    parts: Sequence[Part],
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    repair: Repair | None = None,
    new_only: bool = False,
) -> Composed:
    """Put parts one behind the other, and take over what cards know of them.

    What a card knows of a part was computed behind what stood before it there. Its keys are moved
    to their new positions, and ``repair`` chooses tokens that are computed anew. Tokens that still
    stand behind the same tokens are exact. All others are approximate: what the model says may
    differ from what it would say had it read the text.

    Args:
        model: all cards are of it.
        parts: in order, each a card, a `Span` of one, a text, or token ids. The first text gets
            the special tokens that belong before a context; no other one does.
        tokenizer: the model's. A text needs it.
        repair: by default `First`, the first tokens behind each seam.
        new_only: as for `CacheCard.inputs`.

    Returns:
        The arguments, and what was taken over, computed and left.

    Raises:
        PromptError: no part is of a card, or the model cannot read them.
        IdentityError: a card is of another model.
        CardError, CodecError: a card is damaged, expired or thin.
        UnsupportedModelError: keys of this model cannot be moved, a sliding layer has forgotten
            what is needed, or this model lost more than half of what a part is worth when it was
            tried.
    """
    require_composable(model)
    layout = Layout.of(model, tokenizer, parts)
    require_text(model, layout.ids)
    forget_positions(model)
    repair = repair or First()
    with torch.inference_mode(False), torch.no_grad():
        composition = Composition(model, layout, *place(model, tokenizer, layout))
        loss = expected_loss(model, layout)  # only now: all cards are known to be of this model
        repair.repair(composition)
        composition.require_seen(composition.changed[:0])
        cache = as_cache(composition)
    first = layout.spans[0].span.card
    exact = int(layout.taken[: layout.exact].sum())
    cache.read, cache.repaired = len(composition.text), int(composition.anew.sum())
    cache.taken = int(layout.taken.sum()) - exact - cache.repaired
    return Composed(
        inputs=arguments_of(model, first, layout.ids, cache, new_only),
        exact=exact,
        taken=cache.taken,
        repaired=cache.repaired,
        read=cache.read,
        left=len(layout.left),
        expected_loss=loss,
    )


def as_cache(composition: Composition) -> ComposedCache:
    """The buffers as layers that grow in place."""
    observed, seq_len = observe(composition.model), composition.layout.cached
    cache = ComposedCache(composition.model)
    cache.layers = growing_layers(observed.empty, observed.numbers)
    for layer, slot, buffer in zip(
        observed.layers, numbered(cache, observed.numbers), composition.buffers, strict=True
    ):
        first = 0 if layer.window is None else max(0, seq_len - layer.window + 1)
        attach(slot, buffer, slice(first, seq_len), seq_len)
    return cache
