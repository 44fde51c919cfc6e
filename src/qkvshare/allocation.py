"""Allocation: from salience and a number of bits to the width of every row.

`Lagrangian` is what capture allocates by. An allocator from another package is an entry point of
the group ``qkvshare.allocators``; `codecs.tiered` says what it must do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from .card.errors import BudgetError, CodecError
from .codecs import Allocator, BitMap, Demand, LayerBits, Shape
from .profile import Profile
from .registry import build, find


@dataclass(frozen=True)
class Lagrangian(Allocator):
    """The least weighted distortion that the bits allow, over every row at once.

    A row's worth is ``energy · (floor + share · salience) · weight``. The floor is for the facts
    that nobody has asked about yet: such a row still counts by what its loss would distort.
    Salience adds bits for the few rows that every query looks at. Energy and salience are relative
    to their mean over the layer, keys and values apart.

    The weight is one for each head's keys and one for its values: what their typical error would do
    to the model's predictions, ``(Fisher information · mean energy of the layer) ** sensitivity``.
    A power of 1 would be right for small errors; at a few bits they are not small, and the heads
    with little Fisher information would be left without bits.

    A ``share`` of 0 asks no scorer; a ``sensitivity`` of 0 weighs all heads alike.
    """

    share: float = 1.0
    floor: float = 0.1
    sensitivity: float = 0.5

    name = "lagrangian"

    @property
    def uses_salience(self) -> bool:
        """A share of 0 saves the forward pass that scoring costs."""
        return self.share != 0

    @property
    def uses_sensitivity(self) -> bool:
        """A power of 0 saves measuring the model."""
        return self.sensitivity != 0

    def allocate(self, demand: Demand, budget: int) -> BitMap:
        """Raises `BudgetError`."""
        ladder = self.ladder(demand)
        return ladder.fill(budget, ladder.slope(budget))

    def ladder(self, demand: Demand) -> Ladder:
        """Worth is relative to what else there is, so a slope means the same in every segment."""
        worth = []
        for number, energy in enumerate(demand.energy):
            both = torch.stack([energy.keys, energy.values])  # [2, kv_heads, tokens]
            mean = both.mean((1, 2), keepdim=True).clamp(min=1e-30)
            weight: float | Tensor = self.floor
            if self.uses_salience:
                assert demand.salience is not None
                weight = self.floor + self.share * demand.salience[number].to(both.device)
            worth.append(both / mean * weight)
            if demand.sensitivity is not None:
                fisher = demand.sensitivity[number].to(both.device)[:, :, None]
                worth[-1] *= (fisher * mean) ** self.sensitivity
        return Ladder(demand, worth, demand.codec.distortion)


def _split(flat: Tensor, shapes: Sequence[Shape]) -> BitMap:
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
        if self._cost(high) > budget:
            raise BudgetError(
                f"{budget} bits for codes are fewer than the {self._cost(high)} of the narrowest "
                "widths."
            )
        if self._cost(low) <= budget:
            return low
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self._cost(middle) > budget else (low, middle)
        return high

    def at(self, slope: int) -> BitMap:
        """What every row is given at ``slope``."""
        return self._widths(self._chosen(slope))

    def fill(self, budget: int, slope: int) -> BitMap:
        """At the budget's ``slope``; what is left over goes to those next in line, in order."""
        now, next_ = self._chosen(slope), self._chosen(slope - 1)
        extra = self.prices[self.kind, next_] - self.prices[self.kind, now]
        now = torch.where(extra.cumsum(0) <= budget - self._cost(slope), next_, now)
        return self._widths(now)

    def _tiers_at(self, slope: int) -> Tensor:
        """For every level the tier up to which a step is worth more than ``slope``."""
        return torch.searchsorted(-self.steps, self.levels + (self.lowest - slope))

    def _cost(self, slope: int) -> int:
        return self.fixed + int((self.counts * self.prices[:, self._tiers_at(slope)]).sum())

    def _chosen(self, slope: int) -> Tensor:
        last = len(self.demand.codec.tiers) - 1
        return torch.where(self.sink, last, self._tiers_at(slope)[self.level])

    def _widths(self, chosen: Tensor) -> BitMap:
        widths = torch.tensor(self.demand.codec.tiers, dtype=torch.uint8)[chosen]
        return _split(widths, self.demand.shapes)


def _log(x: Tensor) -> Tensor:
    """Logarithm to base 2 in units of 1/32, int64."""
    return (torch.log2(x.clamp(min=2.0**-200)) * 32).round().long()


ALLOCATORS: dict[str, type[Allocator]] = {Lagrangian.name: Lagrangian}


def find_allocator(name: str) -> type[Allocator]:
    """The class registered as ``name``. Raises `CodecError` with the names there are."""
    return find(name, Allocator, ALLOCATORS, "allocator", CodecError)  # type: ignore[type-abstract]


def make_allocator(text: str, profile: Profile | None = None) -> Allocator:
    """From ``name`` or ``name:field=value,…``, with ``profile`` where the allocator takes one.

    Raises `CodecError`.
    """
    made: Any = build(text, find_allocator, CodecError)
    if "profile" in (field.name for field in fields(made)):
        made = replace(made, profile=profile)
    allocator: Allocator = made
    return allocator
