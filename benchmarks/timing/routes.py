"""Routes to a first token: from the text, from a cache in memory, from a file. `cards` has ours.

What a route needs is made beforehand, by `Route.prepare` and `Route.ready`; then it is timed from
`Route.open` to `Route.sample`, and on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import DynamicCache

from qkvshare.card.digest import TokenIds
from qkvshare.hf.cache.layers import attention_layers, empty_cache, place_layer
from qkvshare.hf.capture.state import State

from ..evals.handoff import Setting


@dataclass
class Route:
    """How ``model`` goes on from the context ``ids`` by ``new`` ids; files are in ``folder``.

    Attributes:
        name: as in the results.
        attention: the function that the model uses then.
        file: what must cross a link for it, in ``folder``; None where nothing can.
    """

    model: Any
    ids: TokenIds
    new: list[int]
    folder: Path
    setting: Setting | None

    _given: dict[str, Any] = field(default_factory=dict, init=False)
    _logits: Any = field(default=None, init=False)
    _token: Any = field(default=None, init=False)

    name: ClassVar[str]
    attention: ClassVar[str] = "sdpa"
    file: ClassVar[str | None] = None

    def prepare(self, state: State) -> None:
        """Write files: nobody waits for it."""

    def ready(self, state: State | None) -> None:
        """Put into memory what the route has there when it starts."""

    def open(self) -> None:
        """The file, from which `arguments` will be made."""

    def arguments(self) -> dict[str, Any]:
        """What the model is called with."""
        raise NotImplementedError

    def inject(self) -> None:
        """Make all ready for the model."""
        self._given = self.arguments()

    def forward(self) -> None:
        """Read the new ids."""
        self._logits = self.model(**self._given, logits_to_keep=1).logits

    def sample(self) -> None:
        """The most probable token."""
        self._token = self._logits[:, -1].argmax(-1, keepdim=True)
        self._token.item()

    def follow(self) -> None:
        """One token more."""
        given = self._given
        given["attention_mask"] = F.pad(given["attention_mask"], (0, 1), value=1)
        given["input_ids"] = self._token
        self.forward()
        self.sample()

    def drop(self) -> None:
        """Let go of the cache that this round has made."""
        self._given, self._logits = {}, None

    def alone(self) -> dict[str, Callable[[], object]]:
        """Parts of the work that overlap in use, to be timed by themselves."""
        return {}

    @property
    def codec(self) -> str:
        """What keys and values are encoded by, in the results."""
        return "none"

    @property
    def nbytes(self) -> int:
        """What the receiver needs beside the model."""
        assert self.file is not None
        return (self.folder / self.file).stat().st_size

    @property
    def cache_bytes(self) -> int | None:
        """Of the cache in memory, once the new tokens are read."""
        layers: list[Any] = self._given["past_key_values"].layers
        return int(sum(part.nbytes for at in layers for part in (at.keys, at.values)))

    @property
    def path(self) -> Path:
        """Of the file."""
        assert self.file is not None
        return self.folder / self.file

    def _with(self, cache: Any, ids: list[int]) -> dict[str, Any]:
        total, device = len(self.ids) + len(self.new), self.model.device
        return {
            "input_ids": torch.tensor([ids], device=device),
            "attention_mask": torch.ones(1, total, dtype=torch.long, device=device),
            "past_key_values": cache,
            "use_cache": True,
        }


class RePrefill(Route):
    """Read everything again."""

    name, file = "re-prefill", "ids"

    def prepare(self, state: State) -> None:
        """Ids, 4 bytes each."""
        self.path.write_bytes(self.ids.tobytes())

    def arguments(self) -> dict[str, Any]:
        """An empty cache and all ids."""
        return self._with(empty_cache(self.model), [*self.ids.tolist(), *self.new])


@dataclass
class Resident(Route):
    """Plain transformers, its cache already in memory: nothing is loaded, nothing decoded."""

    name = "resident"
    cache: DynamicCache | None = field(default=None, init=False)

    def ready(self, state: State | None) -> None:
        """A cache of its own."""
        assert state is not None
        self.cache = state.cache()

    def arguments(self) -> dict[str, Any]:
        """The cache, without what the round before has added."""
        assert self.cache is not None
        added = self.cache.get_seq_length() - len(self.ids)
        if added:
            self.cache.crop(-added)
        return self._with(self.cache, self.new)

    @property
    def nbytes(self) -> int:
        """Of memory."""
        assert self.cache is not None
        layers: list[Any] = self.cache.layers
        return sum(part.nbytes for layer in layers for part in (layer.keys, layer.values))


@dataclass
class FullPrecisionFile(Route):
    """Keys and values as they are in a safetensors file, unchecked."""

    name, file = "full-precision-file", "full.safetensors"
    _tensors: dict[str, Tensor] = field(default_factory=dict, init=False)

    def prepare(self, state: State) -> None:
        """Write it."""
        tensors: dict[str, Tensor] = {}
        for number, held in enumerate(state.cached):
            tensors[f"{number}.keys"] = held.keys.contiguous()
            tensors[f"{number}.values"] = held.values.contiguous()
        save_file(tensors, self.path)

    def open(self) -> None:
        """Read it."""
        self._tensors = load_file(self.path, device=str(self.model.device))

    def arguments(self) -> dict[str, Any]:
        """Put in place."""
        tensors, self._tensors = self._tensors, {}
        cache = empty_cache(self.model)
        for number, place in enumerate(attention_layers(cache)):
            keys, values = tensors[f"{number}.keys"], tensors[f"{number}.values"]
            place_layer(place, keys, values, len(self.ids))
        return self._with(cache, self.new)
