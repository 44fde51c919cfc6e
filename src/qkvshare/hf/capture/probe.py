"""Probes: the queries that tell what a context is looked at for.

SDPA gives no attention weights; queries are taken on their way into the attention function, after
RoPE and whatever else the model does to them. There are two occasions: while capture reads the
context itself, some of the context's own queries, which cost next to nothing; and, for a live cache
or a receiver's question, a few tokens that the model reads behind the context on a shallow copy of
the cache, which costs about ``probes ÷ tokens`` of a prefill.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import sdpa_mask

from ...card.digest import TokenIds
from ...scoring import AttentionProbe, Scorer, Visibility
from .. import attention
from ..cache.observe import observe
from ..model.rope import Rope

_NAME = "qkvshare_probe"
# Chunks of the context, evenly spaced, that are read again behind a live cache.
_CHUNKS, _CHUNK = 4, 8
_INNER = {"sdpa": attention.transformers_attention, attention.NAME: attention.attention_forward}
_watching = threading.local()


def choose_probes(ids: TokenIds) -> TokenIds:
    """A sample of the context, to be read behind it."""
    if len(ids) <= _CHUNKS * _CHUNK:
        return ids
    stride = len(ids) // _CHUNKS
    chunks = [ids[at + stride - _CHUNK : at + stride] for at in range(0, _CHUNKS * stride, stride)]
    return np.concatenate(chunks)


@dataclass
class Watch:
    """What to score while the model reads, and what came out.

    Attributes:
        model: the one that reads.
        scorers: whom to ask.
        behind: how many of the tokens read are probes behind the context, and all that is looked
            at; 0 while the context itself is read: scorers choose among its queries.
        scores: for each scorer and layer ``[kv_heads, tokens]``, float32.
    """

    model: PreTrainedModel
    scorers: Sequence[Scorer]
    behind: int = 0
    scores: dict[Scorer, dict[int, Tensor]] = field(default_factory=dict)
    _looks: dict[tuple[Scorer, torch.device], tuple[Tensor | None, Tensor, Visibility]] = field(
        default_factory=dict
    )

    @cached_property
    def _rope(self) -> Rope:
        return Rope(self.model, observe(self.model).numbers)

    def see(
        self, layer: int, query: Tensor, key: Tensor, mask: Tensor | None, scaling: float
    ) -> None:
        """Score one layer: ``query [heads, read, dim]``, ``key [kv_heads, total, dim]``, and the
        model's ``mask [1, 1, read, total]``."""
        heads, read, dim = query.shape
        kv_heads, total = key.shape[:2]
        rows = query.view(kv_heads, heads // kv_heads, read, dim)
        for scorer in self.scorers:
            chosen, visibility = self._look(scorer, read, total, mask, key.device)
            probe = AttentionProbe(
                rows[:, :, chosen],
                key,
                visibility,
                scaling,
                total - self.behind,
                partial(_rotate, self._rope, layer),
            )
            self.scores.setdefault(scorer, {})[layer] = scorer.score(probe).float()

    def _look(
        self, scorer: Scorer, read: int, total: int, mask: Tensor | None, device: torch.device
    ) -> tuple[Tensor, Visibility]:
        """Which queries are looked at, ``[chosen]``, and what each sees.

        Layers of one kind share their mask, so this is worked out once for each kind.
        """
        known = self._looks.get((scorer, device))
        if known is not None and known[0] is mask and known[2].visible.shape[1] == total:
            return known[1:]
        chosen = torch.arange(read) if self.behind else scorer.probes(read)
        chosen = chosen.to(device)
        if mask is None:
            visible = torch.arange(total, device=device) <= chosen[:, None] + total - read
        else:
            part = mask[0, 0, chosen, :total]
            visible = part if part.dtype == torch.bool else part > -1
        visibility = Visibility(visible)
        self._looks[scorer, device] = mask, chosen, visibility
        return chosen, visibility


def _rotate(rope: Rope, layer: int, vectors: Tensor, positions: Tensor) -> Tensor:
    """`AttentionProbe.rotate`: of positions of the cached keys only differences matter."""
    if (positions < 0).any():
        return rope.unrotate(layer, vectors, -positions)
    return rope.rotate(layer, vectors, positions)


def can_watch_reading(model: PreTrainedModel) -> bool:
    """Whether watching leaves the model's own attention as it is, bit for bit."""
    return str(model.config._attn_implementation) in _INNER


@contextmanager
def watched(model: PreTrainedModel, watch: Watch) -> Iterator[None]:
    """Exchange the model's attention function; other threads must not use it meanwhile."""
    before = model.config._attn_implementation
    _watching.watch, _watching.inner = watch, _INNER.get(before, _INNER["sdpa"])
    try:
        model.set_attn_implementation(_NAME)
        with torch.compiler.set_stance("force_eager"):  # a compiled model would be compiled for it
            yield
    finally:
        model.set_attn_implementation(before)
        del _watching.watch, _watching.inner


def _attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **arguments: Any,
) -> tuple[Tensor, None]:
    """The model's own attention of ``query [1, heads, read, head_dim]``; scores are taken in
    passing."""
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    _watching.watch.see(module.layer_idx, query[0], key[0], attention_mask, scale)
    inner: Callable[..., tuple[Tensor, None]] = _watching.inner
    return inner(module, query, key, value, attention_mask, scaling=scaling, **arguments)


AttentionInterface.register(_NAME, _attention)
AttentionMaskInterface.register(_NAME, sdpa_mask)
