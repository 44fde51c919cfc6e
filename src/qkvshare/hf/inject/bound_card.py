"""A card and the model that it belongs to."""

from __future__ import annotations

from typing import Any, cast

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ...card import CacheCard, Run
from ...codecs import find_codec
from ..cache.card_cache import CardCache
from ..cache.layers import require_geometry
from ..model.config import device_of
from ..model.identity import identify
from ..model.rope import Rope, Rotation


class BoundCard:
    """Proof that a card is a model's: to make one is to compare their identities.

    Whatever makes memory for a card or decodes it takes one of these, so that no order of
    calls decodes a card into the cache of another model.

    Attributes:
        card: its layers are the model's.
        model: it is what the card's identity says, weight for weight.
        devices: where each layer of the model computes.
        config: the decoder's.
    """

    def __init__(
        self,
        card: CacheCard,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> None:
        """Compare them.

        Raises:
            IdentityError: the model, its layers, or the tokenizer are not the card's.
            UnsupportedModelError: a card cannot carry such a model's state.
        """
        card.manifest.identity.require(identify(model, tokenizer))
        self._empty = require_geometry(model, card.manifest.layers)
        self.card, self.model = card, model
        decoder = cast(Any, model).get_decoder()
        self.config = decoder.config
        self.devices = [device_of(layer) for layer in decoder.layers]
        self._rope = Rope(model)

    def cache(self, decoded: int) -> CardCache:
        """An empty cache, for the first ``decoded`` tokens of the card."""
        return CardCache(self.card, decoded, self._empty)

    def rotation(self, run: Run, layer: int) -> Rotation | None:
        """What brings a layer's keys to their positions once ``run`` is decoded; None if nothing.

        Of all tokens of the run, whichever are needed: sines of another range of positions may
        differ in their last bits.
        """
        if not find_codec(run.codec.name).pre_rope:
            return None
        positions = range(run.end - run.held(layer), run.end)
        head_dim = self.card.manifest.layers[layer].head_dim
        return self._rope.rotation(layer, positions, head_dim, self.devices[layer])
