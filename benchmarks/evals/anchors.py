"""Anchors as KVCOMM (arXiv:2510.12872) has them, to be compared with `Anchors`.

For each token of parts that an agent has read, it keeps what keys and values became behind that
agent's prompt. It shifts each token of a new part by a mean over those of the same index, weighted
by a softmax over distances of embeddings.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from qkvshare.codecs import LayerKV
from qkvshare.hf.cache.observe import observe
from qkvshare.hf.compose.anchors import offsets
from qkvshare.hf.compose.composition import Composition
from qkvshare.hf.compose.repairs import Repair
from qkvshare.hf.model.rope import Rope


@dataclass(frozen=True)
class Anchor:
    """One part that was read behind the prompt: token ids, and by how much the keys (before RoPE)
    and values of each layer changed ``[kv_heads, tokens, dim]``."""

    ids: Tensor
    offsets: list[LayerKV]


def anchors_of(composition: Composition) -> list[Anchor]:
    """One for each span of an unrepaired ``composition``."""
    layout, found = composition.layout, list[Anchor]()
    for slot, _, offset in offsets(composition):
        if slot == len(found):
            at = layout.spans[slot].at
            ids = layout.ids[at : at + offset.keys.shape[1]]
            found.append(Anchor(torch.tensor(ids, dtype=torch.long), []))
        found[slot].offsets.append(offset)
    return found


def _shift(
    model: Any, anchors: Sequence[Anchor], ids: Tensor, number: int
) -> tuple[Tensor, Tensor]:
    """Of layer ``number``. Tokens beyond the end of an anchor take its last one."""
    embed = model.get_input_embeddings().weight.detach()
    at = [torch.arange(len(ids)).clamp(max=len(anchor.ids) - 1) for anchor in anchors]
    far = torch.stack(
        [
            (embed[ids].float() - embed[anchor.ids[index]].float()).norm(dim=1)
            for anchor, index in zip(anchors, at, strict=True)
        ]
    )
    weights = (-far).softmax(0)  # [anchors, tokens]
    keys, values = (
        torch.stack(
            [
                weight[None, :, None] * getattr(anchor.offsets[number], part)[:, index]
                for anchor, index, weight in zip(anchors, at, weights, strict=True)
            ]
        ).sum(0)
        for part in ("keys", "values")
    )
    return keys, values


def _keys(offset: LayerKV) -> Tensor:
    return offset.keys


def _values(offset: LayerKV) -> Tensor:
    return offset.values


@dataclass(frozen=True)
class Published(Repair):
    """Shift each part by what ``slots`` say of parts that stood in its place."""

    slots: Sequence[Sequence[Anchor]]

    def repair(self, composition: Composition) -> None:
        """All tokens of each span."""
        rope = Rope(composition.model, observe(composition.model).numbers)
        for anchors, placed in zip(self.slots, composition.layout.spans, strict=True):
            end = min(placed.at + len(placed.span), composition.layout.cached)
            ids = torch.tensor(composition.layout.ids[placed.at : end], dtype=torch.long)
            for number, buffer in enumerate(composition.buffers):
                keys, values = _shift(composition.model, anchors, ids, number)
                keys = rope.rotate(number, keys, range(placed.at, end))
                for part, by in ((buffer.keys, keys), (buffer.values, values)):
                    part[:, placed.at : end] += by.to(part.dtype)
        composition.read()
