"""``attention``: the mean attention that a token receives from the queries that can see it.

Three things make of the context's own queries a good guess of what comes after it. A query in the
middle mostly looks around itself, as any query will, so what it says of its nearest tokens does not
count. Heads are noisy, so a head's score is mixed with the mean over all heads of the layer. And
the newest queries are the best guess, so all of them are probes.
"""

from __future__ import annotations

from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from ..registry import require_range
from .base import Glance, Scorer, Sight, evenly_spaced


@dataclass(frozen=True)
class Attention(Scorer):
    """Averaged over probes and over the query heads that share a KV head.

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

    def score(self, glance: Glance) -> Tensor:
        """A late token is judged by few queries: the mean is over those, not over all."""
        local, judges = _judged(glance.sight, glance.tokens, self.local, self.recent)
        given = glance.attention()
        heads, group, probes, seen = given.shape
        # Few of them say nothing: those are put out, and all that is left is summed by a product.
        given.view(heads * group, probes * seen).index_fill_(1, local, 0)
        ones = given.new_ones(()).expand(heads, 1, group * probes)
        score = torch.bmm(ones, given.view(heads, group * probes, seen))[:, 0, : glance.tokens]
        score = score / (group * judges)
        score = score / score.mean(1, keepdim=True).clamp(min=1e-30)
        return torch.lerp(score, score.mean(0, keepdim=True), self.shared)


# As long as the layers that share it: it has memory of their size.
_known: WeakKeyDictionary[Sight, dict[tuple[int, int, int], tuple[Tensor, Tensor]]]
_known = WeakKeyDictionary()


def _judged(sight: Sight, tokens: int, local: int, recent: int) -> tuple[Tensor, Tensor]:
    """`_judge`, once for all layers."""
    known, key = _known.setdefault(sight, {}), (tokens, local, recent)
    if key not in known:
        known[key] = _judge(sight, *key)
    return known[key]


def _judge(sight: Sight, tokens: int, local: int, recent: int) -> tuple[Tensor, Tensor]:
    """Of which tokens which probes say nothing though they see them, as places in ``[probes,
    tokens + behind]``; and how many say something, ``[tokens]``."""
    places = sight.positions[:, None]
    far = torch.arange(sight.visible.shape[1], device=places.device) <= places - local
    counts = sight.visible & (far | (places >= tokens - recent))
    near = (sight.visible & ~counts).flatten().nonzero()[:, 0]
    return near, counts[:, :tokens].sum(0).clamp(min=1)
