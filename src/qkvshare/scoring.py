"""Scorers: how much later queries will look at each token, judged before any has come.

A scorer from another package is an entry point of the group ``qkvshare.scorers``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from .card.errors import CodecError
from .registry import build, find, require_range


@dataclass(frozen=True, eq=False)
class Visibility:
    """Which keys each probe sees: bool ``visible [probes, tokens + behind]``.

    Layers of one kind share it, and what is worked out of it.
    """

    visible: Tensor

    @cached_property
    def positions(self) -> Tensor:
        """The index of each probe's own key, the last that it sees: int64 ``[probes]``."""
        return self.visible.shape[1] - 1 - self.visible.flip(1).int().argmax(1)

    @cached_property
    def mask(self) -> Tensor:
        """0 where a probe sees, minus infinity elsewhere: float32 ``[probes, tokens + behind]``."""
        mask = torch.zeros_like(self.visible, dtype=torch.float32)
        return mask.masked_fill_(~self.visible, float("-inf"))


# Memory for the attention of one layer after another: to allocate it anew for each layer takes as
# long as a softmax. It lives as long as the layers' `Visibility`.
_buffers: WeakKeyDictionary[Visibility, dict[tuple[int, int], tuple[Tensor, Tensor]]]
_buffers = WeakKeyDictionary()


def _buffer(visibility: Visibility, heads: int, group: int) -> tuple[Tensor, Tensor]:
    """The mask for each of ``group`` query heads, ``[group · probes, tokens + behind]``, and memory
    for ``heads`` such matrices."""
    known = _buffers.setdefault(visibility, {})
    if (heads, group) not in known:
        mask = visibility.mask.repeat(group, 1)
        known[heads, group] = mask, mask.new_empty(heads, *mask.shape)
    return known[heads, group]


@dataclass(frozen=True)
class AttentionProbe:
    """One layer's attention as some queries, the probes, see it.

    Attributes:
        queries: ``[kv_heads, group, probes, head_dim]``, after RoPE.
        keys: ``[kv_heads, tokens + behind, head_dim]``, after RoPE.
        visibility: what the probes see.
        scaling: what the model multiplies ``queries · keys`` with.
        tokens: how many of the keys are the context's; those behind belong to probes that the
            model read after it.
        rotate: rotates vectors ``[heads, n, head_dim]`` by positions ``[n]``, as RoPE does;
            negative positions rotate back.
    """

    queries: Tensor
    keys: Tensor
    visibility: Visibility
    scaling: float
    tokens: int
    rotate: Callable[[Tensor, Tensor], Tensor]

    def attention(self) -> Tensor:
        """Probabilities ``[kv_heads, group, probes, tokens + behind]``, float32.

        The next layer's attention overwrites them.
        """
        heads, group, probes, _ = self.queries.shape
        mask, buffer = _buffer(self.visibility, heads, group)
        # A query head has no keys of its own: all of a group go through one product.
        rows, keys = self.queries.flatten(1, 2).float(), self.keys.float().mT
        torch.baddbmm(mask, rows, keys, alpha=self.scaling, out=buffer)
        return torch.softmax(buffer, -1, out=buffer).view(heads, group, probes, -1)

    def slices(self, size: int = 128) -> Iterator[AttentionProbe]:
        """The same with ``size`` probes at a time, where the matrix of all would be large."""
        visible = self.visibility.visible
        for start in range(0, visible.shape[0], size):
            part = slice(start, start + size)
            queries, seen = self.queries[:, :, part], Visibility(visible[part])
            yield replace(self, queries=queries, visibility=seen)


class Scorer(ABC):
    """Base of all scorers: frozen dataclasses whose fields are their parameters.

    Attributes:
        name: what a manifest, a command line and the entry point call it.
        rereads: whether the model must read the whole context again behind it, with all of that as
            probes.
    """

    name: ClassVar[str]
    rereads: ClassVar[bool] = False

    def probes(self, tokens: int) -> Tensor:
        """Which of ``tokens`` queries of a context to look at, ascending, int64 ``[probes]``.

        None for scorers that do without queries: the model need not be watched for them.
        """
        del tokens
        return torch.arange(0)

    @abstractmethod
    def score(self, probe: AttentionProbe) -> Tensor:
        """Salience of one layer's tokens, ``[kv_heads, tokens]``, at least 0, in any unit."""


def evenly_spaced(tokens: int, count: int) -> Tensor:
    """``count`` of ``tokens`` numbers, the last one included; all of them where they are fewer."""
    count = min(count, tokens)
    return (torch.arange(1, count + 1) * tokens) // max(count, 1) - 1


@dataclass(frozen=True)
class AttentionScorer(Scorer):
    """The mean attention that a token receives from the probes that can see it.

    Three things make the context's own queries a good guess of what comes after it. A query in the
    middle mostly looks around itself, as any query will, so what it says of its nearest tokens does
    not count. Heads are noisy, so a head's score is mixed with the mean over all heads of the
    layer. And the newest queries are the best guess, so all of them are probes.

    Attributes:
        count: probes evenly spaced over the context.
        recent: probes at its end.
        local: tokens before a probe, itself included, of which it says nothing; the ``recent``
            ones, whose nearest tokens will also be those of the next queries, say all.
        shared: weight of the mean over heads.
    """

    count: int = 24
    recent: int = 24
    local: int = 32
    shared: float = 0.6

    name = "attention"

    def __post_init__(self) -> None:
        """Raise `CodecError` for numbers that mean nothing."""
        require_range(self, "count", "recent", "local", low=0)

    def probes(self, tokens: int) -> Tensor:
        """Evenly spaced ones and the newest."""
        newest = torch.arange(max(0, tokens - self.recent), tokens)
        both: Tensor = torch.unique(torch.cat([evenly_spaced(tokens, self.count), newest]))
        return both

    def score(self, probe: AttentionProbe) -> Tensor:
        """A late token is judged by few queries: the mean is over those, not over all."""
        ignored, judges = _judges(probe.visibility, probe.tokens, self.local, self.recent)
        weights = probe.attention()
        heads, group, probes, seen = weights.shape
        # Few entries do not count: those are set to 0, and a product sums the rest.
        weights.view(heads * group, probes * seen).index_fill_(1, ignored, 0)
        ones = weights.new_ones(()).expand(heads, 1, group * probes)
        score = torch.bmm(ones, weights.view(heads, group * probes, seen))[:, 0, : probe.tokens]
        score = score / (group * judges)
        score = score / score.mean(1, keepdim=True).clamp(min=1e-30)
        return torch.lerp(score, score.mean(0, keepdim=True), self.shared)


# Once for all layers that share a `Visibility`, and as long as it lives: it has memory of its size.
_judged: WeakKeyDictionary[Visibility, dict[tuple[int, int, int], tuple[Tensor, Tensor]]]
_judged = WeakKeyDictionary()


def _judges(seen: Visibility, tokens: int, local: int, recent: int) -> tuple[Tensor, Tensor]:
    """Entries of ``[probes, tokens + behind]`` where a probe sees a token but says nothing of it,
    as flat indices; and how many probes judge each token, ``[tokens]``."""
    known, key = _judged.setdefault(seen, {}), (tokens, local, recent)
    if key not in known:
        own = seen.positions[:, None]
        far = torch.arange(seen.visible.shape[1], device=own.device) <= own - local
        counts = seen.visible & (far | (own >= tokens - recent))
        ignored = (seen.visible & ~counts).flatten().nonzero()[:, 0]
        known[key] = ignored, counts[:, :tokens].sum(0).clamp(min=1)
    return known[key]


SCORERS: dict[str, type[Scorer]] = {AttentionScorer.name: AttentionScorer}


def find_scorer(name: str) -> type[Scorer]:
    """The class registered as ``name``. Raises `CodecError` with the names there are."""
    return find(name, Scorer, SCORERS, "scorer", CodecError)  # type: ignore[type-abstract]


def make_scorer(text: str) -> Scorer:
    """From ``name`` or ``name:field=value,…``. Raises `CodecError`."""
    return build(text, find_scorer, CodecError)
