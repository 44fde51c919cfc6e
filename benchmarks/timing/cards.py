"""Routes from a card: on disk, in memory, in half the memory, and with codes that stay codes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch

from qkvshare.card import CacheCard
from qkvshare.card.digest import Bytes, digest_bytes
from qkvshare.codecs import Codec, LayerKV, decode_runs, dtype_of, find_codec, shapes_of
from qkvshare.hf.attention import NAME
from qkvshare.hf.cache.buffers import Buffer, allocate
from qkvshare.hf.cache.coded import CodedLayer
from qkvshare.hf.capture.capture import make_card
from qkvshare.hf.capture.state import State
from qkvshare.hf.model.identity import identify
from qkvshare.registry import label

from .routes import FullPrecisionFile, RePrefill, Resident, Route


@dataclass
class CardFile(Route):
    """A card on disk: opened, read, checked, decoded, injected."""

    name, attention = "card-file", NAME
    file: ClassVar[str | None] = "card"
    card: CacheCard | None = field(default=None, init=False)

    def prepare(self, state: State) -> None:
        """Capture and write it."""
        at = self.setting
        assert at is not None
        make_card(state, identify(self.model), at.codec, at.bits).save(self.path)

    def open(self) -> None:
        """Header and ids."""
        self.card = CacheCard.load(self.path)

    def arguments(self) -> dict[str, Any]:
        """By `inject`."""
        assert self.card is not None
        return dict(self.card.inputs(self.model, new=self.new, new_only=True))

    def alone(self) -> dict[str, Callable[[], object]]:
        """Reading, checking, decoding."""
        card = CacheCard.load(self.path)
        (run,) = card.manifest.runs
        data: list[Bytes] = [card.tensors[name] for name in card.tensors]
        kept = CacheCard(card.manifest, card.verified())
        shapes, device = shapes_of(card, run), self.model.device
        if not all(find_codec(run.codec.name).decodes_on(device, shape) for shape in shapes):
            device = torch.device("cpu")

        def decode() -> list[LayerKV]:
            buffers = allocate([Buffer(shape, dtype_of(card), device) for shape in shapes])
            return list(decode_runs(kept, lambda _: buffers)[0])

        return {
            "read": lambda: [card.tensors[name] for name in card.tensors],
            "verify": lambda: [digest_bytes(part.view("u1")) for part in data],
            "decode": decode,
        }

    @classmethod
    def takes(cls, model: Any, codec: Codec) -> bool:
        """Whether ``model`` can go on from a card of ``codec`` in this way."""
        return True

    @property
    def codec(self) -> str:
        """Of the card."""
        assert self.setting is not None
        return label(self.setting.codec)


class Card(CardFile):
    """A card in memory: checked, decoded, injected."""

    name, file = "card", None

    def ready(self, state: State | None) -> None:
        """Read it."""
        card = CacheCard.load(self.path)
        self.card = CacheCard(card.manifest, card.verified())

    def open(self) -> None:
        """It is there."""

    def alone(self) -> dict[str, Callable[[], object]]:
        """As for the file, without reading."""
        parts = super().alone()
        del parts["read"]
        return parts

    @property
    def path(self) -> Path:
        """Where it was read from."""
        return self.folder / "card"

    @property
    def nbytes(self) -> int:
        """Of the file that it would be."""
        assert self.card is not None
        return self.card.nbytes


class CardHalf(Card):
    """A card in memory, of which full layers are decoded to bfloat16."""

    name = "card-half"

    def arguments(self) -> dict[str, Any]:
        """By `inject`."""
        assert self.card is not None
        return dict(self.card.inputs(self.model, new=self.new, new_only=True, kv_format="bfloat16"))

    def alone(self) -> dict[str, Callable[[], object]]:
        """As for the others, but for the number format."""
        return {}

    @classmethod
    def takes(cls, model: Any, codec: Codec) -> bool:
        """As `inject` does."""
        return model.dtype == torch.float32 and not codec.lossless


class CardCodes(Card):
    """A card in memory whose codes stay codes: each layer is decoded whenever it is read."""

    name = "card-codes"

    def arguments(self) -> dict[str, Any]:
        """By `inject`."""
        assert self.card is not None
        return dict(self.card.inputs(self.model, new=self.new, new_only=True, kv_format="codes"))

    @classmethod
    def takes(cls, model: Any, codec: Codec) -> bool:
        """As `inject` does."""
        return codec.independent

    def alone(self) -> dict[str, Callable[[], object]]:
        """Nothing overlaps."""
        return {}

    @property
    def cache_bytes(self) -> int:
        """Of codes, new tokens, and the numbers of two layers."""
        layers: list[CodedLayer] = self._given["past_key_values"].layers
        return sum(layer.nbytes for layer in layers) + layers[0].scratch.nbytes


ROUTES: dict[str, type[Route]] = {
    route.name: route
    for route in (RePrefill, Resident, FullPrecisionFile, Card, CardFile, CardHalf, CardCodes)
}
