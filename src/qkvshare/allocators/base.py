"""What allocators have in common: the way from worth to a bit map."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..card.errors import BudgetError
from ..codecs import LayerBits, Shape
from ..codecs.bits import BitMap
from ..codecs.tiered import SINKS, Allocator, Demand, Features

__all__ = ["SINKS", "Allocator", "Demand", "Features", "Ladder", "evenly", "fill", "in_turn"]


def split(flat: Tensor, shapes: Sequence[Shape]) -> BitMap:
    """Rows in the order layer, keys before values, head, token, cut into layers."""
    out, at = [], 0
    for shape in shapes:
        count = shape.kv_heads * shape.tokens
        keys, values = flat[at : at + count], flat[at + count : at + 2 * count]
        grid = shape.kv_heads, shape.tokens
        out.append(LayerBits(keys.view(grid), values.view(grid)))
        at += 2 * count
    return out


class Ladder:
    """Every row's way up from tier to tier, and what a slope makes of all rows.

    The exact solution of the Lagrangian ``Σ worth · distortion + λ · bits``: a row goes from one
    tier to the next while worth times the fall in distortion per bit exceeds the slope λ. Worth is
    rounded to 1/32 octave, so slopes are integers, in 1/32 octave.

    Args:
        demand: the rows; sinks are given the widest tier whatever the slope.
        worth: per layer ``[2 (keys, values), kv_heads, tokens]``, at least 0.
        distortion: per tier, falling and convex in bits.
    """

    def __init__(
        self, demand: Demand, worth: Sequence[Tensor], distortion: Sequence[float]
    ) -> None:
        self.demand = demand
        rows = torch.tensor([at.kv_heads * at.tokens for at in demand.shapes]).repeat_interleave(2)
        prices, kind = torch.unique(demand.costs().flatten(0, 1), dim=0, return_inverse=True)
        self.prices = prices  # [kinds, tiers]
        self.kind = kind.repeat_interleave(rows)  # which of the prices is a row's
        self.sink = torch.cat(
            [
                (torch.arange(at.tokens) < demand.sinks).repeat(2 * at.kv_heads)
                for at in demand.shapes
            ]
        )
        tiers = torch.tensor(demand.codec.tiers, dtype=torch.float64)
        # A row's own price is left out: within a model all head dims are alike.
        fall = -torch.tensor(distortion, dtype=torch.float64).diff() / tiers.diff()
        self.steps = _log(fall)  # falling
        level = _log(torch.cat([part.flatten().double().cpu() for part in worth]))
        self.lowest = int(level.min())
        self.level = level - self.lowest
        # How many rows of a kind have a level is all that it takes to know what a slope would cost.
        self.levels = torch.arange(int(self.level.max()) + 1)
        self.counts = torch.stack(
            [
                torch.bincount(
                    self.level[~self.sink & (self.kind == number)], minlength=len(self.levels)
                )
                for number in range(len(prices))
            ]
        )
        self.fixed = int(prices[self.kind[self.sink], -1].sum())

    def slope(self, budget: int) -> int:
        """The least whose codes take at most ``budget`` bits. Raises `BudgetError`."""
        low = self.lowest + int(self.steps.min()) - 2
        high = self.lowest + len(self.levels) + int(self.steps.max()) + 1
        if self._spent(high) > budget:
            raise BudgetError(
                f"{budget} bits for codes are fewer than the {self._spent(high)} of the narrowest "
                "widths."
            )
        if self._spent(low) <= budget:
            return low
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self._spent(middle) > budget else (low, middle)
        return high

    def at(self, slope: int) -> BitMap:
        """What every row is given at ``slope``."""
        return self._widths(self._chosen(slope))

    def fill(self, budget: int, slope: int) -> BitMap:
        """At the budget's ``slope``; what is left over goes to those next in line, in order."""
        now, next_ = self._chosen(slope), self._chosen(slope - 1)
        extra = self.prices[self.kind, next_] - self.prices[self.kind, now]
        now = torch.where(extra.cumsum(0) <= budget - self._spent(slope), next_, now)
        return self._widths(now)

    def _tiers_at(self, slope: int) -> Tensor:
        """For every level the tier up to which a step is worth more than ``slope``."""
        return torch.searchsorted(-self.steps, self.levels + (self.lowest - slope))

    def _spent(self, slope: int) -> int:
        return self.fixed + int((self.counts * self.prices[:, self._tiers_at(slope)]).sum())

    def _chosen(self, slope: int) -> Tensor:
        last = len(self.demand.codec.tiers) - 1
        return torch.where(self.sink, last, self._tiers_at(slope)[self.level])

    def _widths(self, chosen: Tensor) -> BitMap:
        widths = torch.tensor(self.demand.codec.tiers, dtype=torch.uint8)[chosen]
        return split(widths, self.demand.shapes)


def fill(
    demand: Demand, budget: int, worth: Sequence[Tensor], distortion: Sequence[float]
) -> BitMap:
    """Spend ``budget`` bits where they lower ``Σ worth · distortion`` most; see `Ladder`.

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


def _log(x: Tensor) -> Tensor:
    """Logarithm to base 2 in units of 1/32, int64."""
    return (torch.log2(x.clamp(min=2.0**-200)) * 32).round().long()
