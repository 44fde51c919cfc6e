"""Ways to a first token: from the text, from a cache in memory, from a file, from a card.

Each holds what it needs beforehand and makes ready arguments for the model: that is what is timed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import DynamicCache

from ..card import CacheCard
from ..evals.handoff import Setting
from ..hf.attention import NAME
from ..hf.capture import make_card
from ..hf.identity import identify
from ..hf.inject import inject
from ..hf.layers import attention_layers, empty_cache, place_layer
from ..hf.state import State


@dataclass
class Way:
    """A way to go on from ``state`` by ``new`` ids.

    Attributes:
        name: as in the results.
        attention: the function that the model uses then.
    """

    state: State
    new: list[int]
    folder: Path
    setting: Setting

    name: ClassVar[str]
    attention: ClassVar[str] = "sdpa"

    def prepare(self) -> None:
        """What is done before anybody waits."""

    def arguments(self) -> dict[str, Any]:
        """What the model is called with."""
        raise NotImplementedError

    @property
    def nbytes(self) -> int:
        """What the receiver needs beside the model: of files, memory, or text ids."""
        return sum(part.nbytes for held in self.state.held for part in (held.keys, held.values))

    def _with(self, cache: DynamicCache | None, ids: list[int]) -> dict[str, Any]:
        total = len(self.state.ids) + len(self.new)
        return {
            "input_ids": torch.tensor([ids], device=self.state.model.device),
            "attention_mask": torch.ones(1, total, dtype=torch.long),
            "past_key_values": cache,
        }


class RePrefill(Way):
    """Read everything again."""

    name = "re-prefill"

    def arguments(self) -> dict[str, Any]:
        """An empty cache and all ids."""
        return self._with(empty_cache(self.state.model), [*self.state.ids.tolist(), *self.new])

    @property
    def nbytes(self) -> int:
        """Ids, 4 bytes each."""
        return int(self.state.ids.nbytes)


@dataclass
class Resident(Way):
    """Plain transformers, its cache already in memory: nothing is loaded, nothing decoded."""

    name = "resident"
    _cache: DynamicCache | None = None

    def prepare(self) -> None:
        """A cache of its own."""
        self._cache = self.state.cache()

    def arguments(self) -> dict[str, Any]:
        """The cache, without what the round before has added."""
        assert self._cache is not None
        added = self._cache.get_seq_length() - len(self.state.ids)
        if added:
            self._cache.crop(-added)
        return self._with(self._cache, self.new)


@dataclass
class FullPrecisionFile(Way):
    """Keys and values as they are in a safetensors file, unchecked."""

    name = "full-precision-file"

    def prepare(self) -> None:
        """Write it."""
        tensors: dict[str, Tensor] = {}
        for number, held in enumerate(self.state.held):
            tensors[f"{number}.keys"] = held.keys.contiguous()
            tensors[f"{number}.values"] = held.values.contiguous()
        save_file(tensors, self._path)

    def arguments(self) -> dict[str, Any]:
        """Read and put in place."""
        tensors, model = load_file(self._path), self.state.model
        cache = empty_cache(model)
        for number, place in enumerate(attention_layers(model, cache)):
            keys, values = tensors[f"{number}.keys"], tensors[f"{number}.values"]
            place_layer(place, keys, values, len(self.state.ids))
        return self._with(cache, self.new)

    @property
    def _path(self) -> Path:
        return self.folder / "full.safetensors"


@dataclass
class Card(Way):
    """A card in memory: checked, decoded, injected."""

    name = "card"
    attention = NAME
    card: CacheCard | None = field(default=None, init=False)

    def prepare(self) -> None:
        """Capture it."""
        at, model = self.setting, self.state.model
        self.card = make_card(self.state, identify(model), at.codec, at.spending(), at.budget)

    def arguments(self) -> dict[str, Any]:
        """By `inject`."""
        assert self.card is not None
        return inject(self.state.model, self.card, self.new)

    @property
    def nbytes(self) -> int:
        """Of the file that it would be."""
        assert self.card is not None
        return self.card.nbytes


@dataclass
class CardFile(Card):
    """A card on disk: opened, read, checked, decoded, injected."""

    name = "card-file"

    def prepare(self) -> None:
        """Write it."""
        super().prepare()
        assert self.card is not None
        self.card.save(self._path)

    def arguments(self) -> dict[str, Any]:
        """By `CacheCard.load` and `inject`."""
        return inject(self.state.model, CacheCard.load(self._path), self.new)

    @property
    def _path(self) -> Path:
        return self.folder / "card"


WAYS: dict[str, type[Way]] = {
    way.name: way for way in (RePrefill, Resident, FullPrecisionFile, Card, CardFile)
}
