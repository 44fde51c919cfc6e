"""A card and the model it belongs to."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ...card import CacheCard, Run
from ...codecs import find_codec
from ...codecs.states import decode_states
from ..cache.card_cache import CardCache
from ..cache.observe import require_geometry
from ..cache.own import own_class
from ..cache.states import put_states
from ..model.config import text_config
from ..model.identity import identify
from ..model.rope import Rope
from ..model.rotation import Rotation
from ..text.tokens import require_vocabulary


class BoundCard:
    """Proof that a card is a model's: to make one is to compare their identities.

    Whatever makes memory for a card or decodes it takes one of these, so that no order of
    calls decodes a card into the cache of another model.

    Attributes:
        card: its layers are the model's.
        model: it is what the card's identity says, weight for weight.
        devices: where each layer of the card belongs.
        config: the decoder's.
    """

    def __init__(
        self,
        card: CacheCard,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> None:
        """Raises `IdentityError`, and `UnsupportedModelError` for state no card can carry."""
        card.manifest.identity.require(identify(model, tokenizer))
        observed = require_geometry(model, card.manifest.layers, card.manifest.states)
        self.card, self.model = card, model
        self.config = text_config(model)
        self.devices, self._observed = observed.devices, observed
        self._rope = Rope(model, observed.numbers)

    def cache(self, decoded: int) -> CardCache:
        """A cache for the first ``decoded`` tokens of the card: without keys and values yet, with
        the states after those tokens. Raises the `CardError` family."""
        observed, kind = self._observed, own_class(self.model, CardCache)
        cache: CardCache = kind(self.card, decoded, observed.empty, observed.numbers)
        cache.stepwise = observed.stepwise
        if (states := self.card.manifest.states) and decoded:
            put_states(cache, states, self._states(), decoded)
        return cache

    def decodes(self, tokens: int) -> int:
        """How many of the card's first ``tokens`` can be in a cache: all, or all but the card's
        last one where the model keeps states, which are those before it."""
        return min(tokens, self.card.tokens - bool(self.card.manifest.states))

    def _states(self) -> list[Tensor]:
        """The card's snapshot, where the model keeps it. Raises the `CardError` family."""
        manifest, last = self.card.manifest, len(self.card.manifest.segments) - 1
        segment, blob = manifest.segments[last], self.card.state_blob(last)
        tensors = decode_states(blob, manifest.snapshot(segment), segment.state_bits)
        for state, tensor in zip(manifest.states, tensors, strict=True):
            if state.dtype == "int64":  # a convolution over token ids
                require_vocabulary(self.model, tensor.numpy().ravel(), "state")
        return [at.to(to) for at, to in zip(tensors, self._observed.state_devices, strict=True)]

    @property
    def shares_layers(self) -> bool:
        """Whether a layer keeps something else beside keys and values."""
        numbers = self._observed.numbers
        states = any(state.layer in numbers for state in self.card.manifest.states)
        return states or len(set(numbers)) < len(numbers)

    @property
    def stepwise(self) -> bool:
        """See `Observed`."""
        return self._observed.stepwise

    def rotation(self, run: Run, layer: int, moved: int = 0) -> Rotation | None:
        """What brings a layer's keys to their positions once ``run`` is decoded, or to others,
        ``moved`` tokens later; None if nothing.

        Of all tokens of the run, whichever are needed: sines of another range of positions may
        differ in their last bits.
        """
        of = self.card.manifest.layers[layer]
        if of.placed or not find_codec(run.codec.name).pre_rope:
            return None
        first, end = run.end - run.held(layer) + moved, run.end + moved
        # Tokens that stand before the part that is wanted may come to stand before the beginning.
        at = range(first, end) if first >= 0 else torch.arange(first, end)
        return self._rope.rotation(layer, at, of.head_dim, self.devices[layer])

    def move(self, layer: int, keys: Tensor, start: int, moved: int) -> Tensor:
        """Keys as cached, from position ``start`` on, to positions ``moved`` tokens later."""
        before = range(start, start + keys.shape[1])
        plain = self._rope.unrotate(layer, keys, before)
        after = range(start + moved, start + moved + keys.shape[1])
        return self._rope.rotate(layer, plain, after).to(keys.dtype)
