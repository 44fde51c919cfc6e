"""Allocators that `lagrangian` has to beat; the learned ones are in `learned`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from qkvshare.allocation import Ladder
from qkvshare.codecs import Allocator, BitMap, Demand
from qkvshare.registry import require_range


def fill(
    demand: Demand, budget: int, worth: Sequence[Tensor], distortion: Sequence[float]
) -> BitMap:
    """Allocate ``budget`` bits where they lower ``Σ worth · distortion`` most; see `Ladder`.

    Raises `BudgetError` where the narrowest tier everywhere already costs more.
    """
    ladder = Ladder(demand, worth, distortion)
    return ladder.fill(budget, ladder.slope(budget))


def evenly(tokens: int) -> Tensor:
    """A worth for each token, all within one octave, whose largest are spread over the context.

    Multiples of the golden ratio spread evenly, however many of them are taken.
    """
    return torch.exp2((torch.arange(tokens) * 0.6180339887498949) % 1)


def in_turn(demand: Demand, budget: int, worth: Sequence[Tensor]) -> BitMap:
    """Like `fill`, but tier after tier: each further bit divides the distortion by 16.

    A row whose worth is 16 times another's is one bit ahead of it; rows within an octave are never
    two tiers apart.
    """
    return fill(demand, budget, worth, [16.0**-bits for bits in demand.codec.tiers])


@dataclass(frozen=True)
class UniformAllocator(Allocator):
    """The same bits for every row.

    Where the budget lies between two widths, tokens evenly spaced over the context get the wider
    one.
    """

    name = "uniform"

    def allocate(self, demand: Demand, budget: int) -> BitMap:
        """Raises `BudgetError`."""
        worth = [evenly(at.tokens).expand(2, at.kv_heads, -1) for at in demand.shapes]
        return in_turn(demand, budget, worth)


@dataclass(frozen=True)
class RandomAllocator(Allocator):
    """Worth drawn from an exponential distribution, the same for all rows of a token."""

    seed: int = 0

    name = "random"

    def allocate(self, demand: Demand, budget: int) -> BitMap:
        """Raises `BudgetError`."""
        tokens = max(at.tokens for at in demand.shapes)
        draw = torch.rand(tokens, generator=torch.Generator().manual_seed(self.seed))
        luck = -torch.log(draw.clamp(min=1e-9))
        # Sliding layers hold the last tokens.
        worth = [luck[tokens - at.tokens :].expand(2, at.kv_heads, -1) for at in demand.shapes]
        return fill(demand, budget, worth, demand.codec.distortion)


@dataclass(frozen=True)
class RecencyAllocator(Allocator):
    """Worth ``(age + 1) ** -power``, age in tokens: the split that several systems ship."""

    power: float = 1.0

    name = "recency"

    def allocate(self, demand: Demand, budget: int) -> BitMap:
        """Raises `BudgetError`."""
        worth = []
        for at in demand.shapes:
            age = torch.arange(at.tokens - 1, -1, -1, dtype=torch.float64)
            worth.append(((age + 1) ** -self.power).expand(2, at.kv_heads, -1))
        return fill(demand, budget, worth, demand.codec.distortion)


@dataclass(frozen=True)
class Salient(Allocator):
    """Two widths, the wider for the most salient tokens (ZipCache, arXiv:2405.14256).

    A share ``ratio`` of the tokens is salient and gets about ``ahead`` bits more than the others.
    ZipCache's own demonstration has 60 % of the tokens at 4 bits and the others at 2; here the
    widths follow from the budget, and 20 % to 40 % had the least KL on training problems of GSM8K.
    """

    ratio: float = 0.3
    ahead: int = 2

    name = "salient"

    def __post_init__(self) -> None:
        """Raise `CodecError` for numbers that mean nothing."""
        require_range(self, "ahead", low=0, high=16)

    @property
    def uses_salience(self) -> bool:
        """It chooses by nothing else."""
        return True

    def allocate(self, demand: Demand, budget: int) -> BitMap:
        """Raises `BudgetError`."""
        assert demand.salience is not None
        worth = []
        for at, salience in zip(demand.shapes, demand.salience, strict=True):
            token = salience.mean(0).cpu()
            chosen = token.topk(round(self.ratio * at.tokens)).indices
            lead = torch.ones(at.tokens)
            lead[chosen] = 16.0**self.ahead
            worth.append((evenly(at.tokens) * lead).expand(2, at.kv_heads, -1))
        return in_turn(demand, budget, worth)
