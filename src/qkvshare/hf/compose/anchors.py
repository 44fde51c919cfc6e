"""Anchors: how parts change behind a prompt, learnt from other parts that stood there.

KVCOMM (arXiv:2510.12872) keeps, for each token of parts that an agent has read, what its keys and
values became behind that agent's prompt, and shifts the token of the same index of a new part by
that. A mean over tokens does better (docs/results/compose.md). So anchors are one shift for each
slot and layer: the first part behind a prompt is one slot, the second part is another.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import torch
from safetensors.numpy import save_file
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ...card import Layer
from ...card.container import FileTensors
from ...card.errors import CardError, ProfileError, PromptError
from ...card.files import replace
from ...codecs import LayerKV
from ..cache.observe import observe
from ..capture.reading import read
from ..model.identity import identify
from ..model.rope import Rope
from ..model.text_only import require_text
from .behind import Behind
from .composition import Composition
from .layout import Layout, Part, Placed
from .place import place
from .prove import require_composable

_FORMAT = "qkvshare-anchors-1"


@dataclass(frozen=True, eq=False)
class Anchors:
    """Mean changes of keys before RoPE and of values, for parts of one kind behind one prompt.

    Attributes:
        behind: what they are for.
        slots: for each part, for each layer, float32 ``[kv_heads, dim]``.
    """

    behind: Behind
    slots: list[list[LayerKV]]

    @classmethod
    def learn(
        cls,
        model: PreTrainedModel,
        examples: Sequence[Sequence[Part]],
        tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> Anchors:
        """Compare what cards know of parts with what the model makes of them where they stand.

        Args:
            model: all cards are of it. It reads each example once.
            examples: parts as `compose` takes them. All have the same prompt and as many parts of
                cards, and the same stood before these in their cards.
            tokenizer: the model's. A text needs it.

        Raises:
            PromptError: no example, or one has other prompts than the first.
            Others: as `compose`.
        """
        require_composable(model)
        behind: Behind | None = None
        totals, counts = list[list[LayerKV]](), list[list[int]]()
        with torch.inference_mode(False), torch.no_grad():
            for parts in examples:
                layout = Layout.of(model, tokenizer, parts)
                require_text(model, layout.ids)
                composition = Composition(model, layout, *place(model, tokenizer, layout))
                if behind is None:
                    behind = Behind.of(composition)
                    totals = [_zeros(composition.buffers) for _ in layout.spans]
                    counts = [[0] * len(composition.buffers) for _ in layout.spans]
                behind.require(composition)
                for slot, number, change in offsets(composition):
                    total = totals[slot][number]
                    total.keys.add_(change.keys.sum(1))
                    total.values.add_(change.values.sum(1))
                    counts[slot][number] += change.keys.shape[1]
        if behind is None:
            raise PromptError("there is no example to learn from; expected one at least.")
        return cls(
            behind,
            [
                [
                    LayerKV(at.keys / max(1, count), at.values / max(1, count))
                    for at, count in zip(*slot, strict=True)
                ]
                for slot in zip(totals, counts, strict=True)
            ],
        )

    def shift(self, composition: Composition) -> None:
        """Move the parts of ``composition`` by what is expected of them here. Tokens that are exact
        stay as they are.

        Raises:
            IdentityError: the anchors are of another model.
            PromptError: they are for another prompt, or for other parts.
        """
        self.behind.require(composition)
        rope = _rope(composition)
        for slot, placed in zip(self.slots, composition.layout.spans, strict=True):
            start, end = _where(composition, placed)
            if start >= end:
                continue
            for number, (by, buffer) in enumerate(zip(slot, composition.buffers, strict=True)):
                at = by.keys[:, None].expand(-1, end - start, -1).to(buffer.keys.device)
                keys = rope.rotate(number, at, range(start, end))
                buffer.keys[:, start:end] += keys.to(buffer.keys.dtype)
                values = by.values[:, None].to(buffer.values)
                buffer.values[:, start:end] += values

    def save(self, path: str | Path) -> Path:
        """Write one safetensors file; ``path`` is replaced as a whole or not at all. Raises
        `ProfileError`."""
        metadata = {"format": _FORMAT, "behind": msgspec.json.encode(self.behind).decode()}
        arrays = {
            name: part.contiguous().numpy()
            for slot, layers in enumerate(self.slots)
            for number, layer in enumerate(layers)
            for name, part in zip(_names(slot, number), (layer.keys, layer.values), strict=True)
        }
        replace(
            Path(path),
            lambda part: save_file(arrays, part, metadata=metadata),
            mode=0o600,
            error=ProfileError,
        )
        return Path(path)

    @classmethod
    def load(cls, path: str | Path, model: PreTrainedModel) -> Anchors:
        """Raises `ProfileError` for a file that holds no anchors, and `IdentityError` for those of
        another model than ``model``."""
        try:
            file = FileTensors(Path(path))
            if file.metadata.get("format") != _FORMAT:
                raise ProfileError(
                    f"{path} has format {file.metadata.get('format')!r}, expected {_FORMAT!r}. "
                    "Make such files with Anchors.save."
                )
            behind = msgspec.json.decode(file.metadata.get("behind", ""), type=Behind)
            behind.identity.require(identify(model))
            slots = [
                [
                    _layer(file, slot, number, layer)
                    for number, layer in enumerate(observe(model).layers)
                ]
                for slot in range(len(behind.donors))
            ]
        except (CardError, KeyError, ValueError, msgspec.DecodeError) as error:
            raise ProfileError(
                f"{path} cannot be read as anchors: {error}. Learn them anew."
            ) from error
        return cls(behind, slots)


def offsets(composition: Composition) -> Iterator[tuple[int, int, LayerKV]]:
    """Slot, layer, and by how much its keys before RoPE and its values change ``[kv_heads, tokens,
    dim]`` when the model reads the tokens of a ``composition`` that nothing has been computed in.
    """
    layout = composition.layout
    dense, rope = read(composition.model, layout.ids[: layout.cached]), _rope(composition)
    for slot, placed in enumerate(layout.spans):
        start, end = _where(composition, placed)
        for number, buffer in enumerate(composition.buffers):
            first = dense.first(number)  # a sliding layer has forgotten what comes before it
            tokens = torch.arange(max(start, first), end)
            tokens = tokens[composition.held[number][tokens]]
            if not len(tokens):
                continue
            new, at = dense.cached[number], tokens.to(buffer.keys.device)
            keys, values = (
                (mine[:, at - first].float() - known[:, at].float()).cpu()
                for mine, known in ((new.keys, buffer.keys), (new.values, buffer.values))
            )
            yield slot, number, LayerKV(rope.unrotate(number, keys, tokens), values)


def _where(composition: Composition, placed: Placed) -> tuple[int, int]:
    """The tokens of a part that something else stands before now."""
    layout = composition.layout
    return max(placed.at, layout.exact), min(placed.at + len(placed.span), layout.cached)


def _zeros(buffers: Sequence[LayerKV]) -> list[LayerKV]:
    return [
        LayerKV(*(torch.zeros(part.shape[0], part.shape[2]) for part in (of.keys, of.values)))
        for of in buffers
    ]


def _rope(composition: Composition) -> Rope:
    return Rope(composition.model, observe(composition.model).numbers)


def _names(slot: int, number: int) -> tuple[str, str]:
    return f"keys.{slot:04d}.{number:04d}", f"values.{slot:04d}.{number:04d}"


def _layer(file: FileTensors, slot: int, number: int, layer: Layer) -> LayerKV:
    """Raises `ValueError` for numbers that are not those of such a layer."""
    parts = []
    for name, dim in zip(_names(slot, number), (layer.head_dim, layer.v_head_dim), strict=True):
        array = file[name]
        if array.dtype != np.float32 or array.shape != (layer.kv_heads, dim):
            raise ValueError(
                f"{name} is {array.dtype} {array.shape}, expected float32 {(layer.kv_heads, dim)}"
            )
        if not np.isfinite(array).all():
            raise ValueError(f"{name} has numbers that are not finite")
        parts.append(torch.from_numpy(array))
    return LayerKV(*parts)
