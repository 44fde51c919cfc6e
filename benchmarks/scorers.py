"""Scorers that `attention` has to beat."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from qkvshare.registry import require_range
from qkvshare.scoring import AttentionProbe, Scorer, evenly_spaced


@dataclass(frozen=True)
class Accumulated(Scorer):
    """All the attention that a token has received (H2O, arXiv:2306.14048).

    The sum is over all queries: early tokens, which more queries see, gather more.
    """

    name = "accumulated"

    def probes(self, tokens: int) -> Tensor:
        """Every query."""
        return torch.arange(tokens)

    def score(self, probe: AttentionProbe) -> Tensor:
        """Summed over the query heads that share a KV head, too."""
        total = probe.keys.new_zeros(probe.keys.shape[0], probe.tokens, dtype=torch.float32)
        for part in probe.slices():
            total += part.attention()[..., : probe.tokens].sum((1, 2))
        return total


@dataclass(frozen=True)
class Normalized(Scorer):
    """Accumulated attention over the number of queries that see a token.

    ZipCache (arXiv:2405.14256): a share ``ratio`` of the queries are probes, half of them the
    newest, half of them drawn.
    """

    ratio: float = 0.1
    seed: int = 0

    name = "normalized"

    def probes(self, tokens: int) -> Tensor:
        """Half the newest, half drawn from the others."""
        half = max(1, round(tokens * self.ratio / 2))
        newest = torch.arange(max(0, tokens - half), tokens)
        generator = torch.Generator().manual_seed(self.seed)
        drawn = torch.randperm(max(0, tokens - half), generator=generator)[:half]
        return torch.cat([drawn, newest]).sort().values

    def score(self, probe: AttentionProbe) -> Tensor:
        """Over probes and over the query heads that share a KV head."""
        seen = probe.visibility.visible[:, : probe.tokens].sum(0).clamp(min=1)
        return probe.attention()[..., : probe.tokens].mean(1).sum(1) / seen


@dataclass(frozen=True)
class Window(Scorer):
    """Attention of the newest queries, pooled (SnapKV, arXiv:2404.14469).

    The paper's own sizes: 32 queries, maxima over 7 tokens.
    """

    size: int = 32
    pool: int = 7

    name = "window"

    def __post_init__(self) -> None:
        """Raise `CodecError` for numbers that mean nothing."""
        require_range(self, "size", "pool")

    def probes(self, tokens: int) -> Tensor:
        """The newest."""
        return torch.arange(max(0, tokens - self.size), tokens)

    def score(self, probe: AttentionProbe) -> Tensor:
        """The window itself, which SnapKV keeps whole, gets the largest score of any."""
        score = probe.attention()[..., : probe.tokens].mean((1, 2))
        score = F.max_pool1d(score[:, None], self.pool, 1, self.pool // 2)[:, 0]
        score[:, max(0, probe.tokens - self.size) :] = score.amax(1, keepdim=True)
        return score


@dataclass(frozen=True)
class Expected(Scorer):
    """Attention that queries to come are expected to pay (arXiv:2510.00636).

    Queries before RoPE are taken as Gaussian, with the mean ``μ`` and covariance ``Σ`` of
    ``count`` of those seen. Rotated to the next ``future`` positions, averaged over these, they
    give ``μ̄`` and ``Σ̄``; then a key's expected unnormalised attention is
    ``exp(s · k·μ̄ + s² · kᵀΣ̄k / 2)`` with the model's scaling ``s``.
    """

    count: int = 256
    future: int = 512

    name = "expected"

    def __post_init__(self) -> None:
        """Raise `CodecError` for numbers that mean nothing."""
        require_range(self, "count", "future")

    def probes(self, tokens: int) -> Tensor:
        """Evenly spaced."""
        return evenly_spaced(tokens, self.count)

    def score(self, probe: AttentionProbe) -> Tensor:
        """The mean over the query heads that share a KV head."""
        kv_heads, group, probes, dim = probe.queries.shape
        flat = probe.queries.flatten(0, 1).float()  # [heads, probes, dim]
        before = probe.rotate(flat, -probe.visibility.positions)
        mean = before.mean(1, keepdim=True)
        spread = (before - mean).mT @ (before - mean) / max(probes - 1, 1)
        positions = torch.arange(probe.tokens, probe.tokens + self.future)
        rotation = torch.zeros(dim, dim, device=flat.device)
        for some in torch.split(positions, 64):
            # A row of the identity, rotated, is a column of the rotation.
            rows = torch.eye(dim, device=flat.device).repeat(len(some), 1)[None]
            each = some.repeat_interleave(dim).to(flat.device)
            rotation += probe.rotate(rows, each)[0].view(len(some), dim, dim).sum(0)
        rotation /= self.future
        mean = (mean @ rotation).view(kv_heads, group, dim)
        spread = (rotation.mT @ spread @ rotation).view(kv_heads, group, dim, dim)
        keys = probe.keys[:, None, : probe.tokens].float()  # [kv_heads, 1, tokens, dim]
        logits = probe.scaling * (keys @ mean[..., None])[..., 0]
        logits = logits + probe.scaling**2 / 2 * ((keys @ spread) * keys).sum(-1)
        return torch.softmax(logits, dim=-1).mean(1)


@dataclass(frozen=True)
class Reconstruction(Scorer):
    """What a model that repeats the context looks at (KVzip, arXiv:2505.23416).

    The context is read once more behind itself; a token's score is the largest attention that any
    query of the repetition pays to it. It asks no question, so it favours none; it costs more than
    a prefill.
    """

    name = "reconstruction"
    rereads = True

    def probes(self, tokens: int) -> Tensor:
        """All queries of the repetition."""
        return torch.arange(tokens)

    def score(self, probe: AttentionProbe) -> Tensor:
        """Largest over queries and over the query heads that share a KV head."""
        most = probe.keys.new_zeros(probe.keys.shape[0], probe.tokens, dtype=torch.float32)
        for part in probe.slices():
            most = torch.maximum(most, part.attention()[..., : probe.tokens].amax((1, 2)))
        return most


@dataclass(frozen=True)
class KeyNorm(Scorer):
    """Keys of small norm are looked at most (arXiv:2406.11430); it asks no query."""

    name = "key-norm"

    def score(self, probe: AttentionProbe) -> Tensor:
        """The inverse of the norms of the context's keys."""
        norms = probe.keys[:, : probe.tokens].float().norm(dim=-1)
        inverse: Tensor = norms.clamp(min=1e-6).reciprocal()
        return inverse


@dataclass(frozen=True)
class RecencyScorer(Scorer):
    """Halves with every ``half_life`` tokens of age; it asks neither queries nor keys."""

    half_life: float = 256.0

    name = "recency"

    def __post_init__(self) -> None:
        """Raise `CodecError` for numbers that mean nothing."""
        require_range(self, "half_life", low=0.01)

    def score(self, probe: AttentionProbe) -> Tensor:
        """The same for all heads."""
        age = torch.arange(probe.tokens - 1, -1, -1, device=probe.keys.device)
        return torch.exp2(-age / self.half_life).expand(probe.keys.shape[0], -1)


@dataclass(frozen=True)
class RandomScorer(Scorer):
    """Uniform numbers, the same for all heads and layers."""

    seed: int = 0

    name = "random"

    def score(self, probe: AttentionProbe) -> Tensor:
        """Drawn anew for each layer, with the same seed."""
        generator = torch.Generator().manual_seed(self.seed)
        drawn = torch.rand(probe.tokens, generator=generator)
        return drawn.to(probe.keys.device).expand(probe.keys.shape[0], -1)
