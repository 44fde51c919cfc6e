"""From a live cache and a budget to a bit map: score, then allocate."""

from __future__ import annotations

from dataclasses import dataclass

from ..allocators import SINKS, Allocator, Demand
from ..card.digest import TokenIds
from ..codecs import Codec, Shape
from ..codecs.bits import BitMap
from ..scorers import Scorer
from .probe import choose_probes, salience
from .state import State

# Fewer tokens than this per sink, and sinks would eat what the others need.
_TOKENS_PER_SINK = 64


@dataclass(frozen=True)
class Spending:
    """How capture spends bits: who scores, who allocates, and the receiver's question if known."""

    scorer: Scorer | None
    allocator: Allocator
    focus: TokenIds | None = None

    @property
    def scored_by(self) -> Scorer | None:
        """The scorer that is really asked."""
        return self.scorer if self.allocator.uses_salience else None


def shapes_of(state: State, start: int) -> list[Shape]:
    """Geometry of what each layer holds from token ``start`` on."""
    return [
        Shape.of(layer, len(state.ids) - max(start, state.first(number)))
        for number, layer in enumerate(state.layers)
    ]


def least_bits(state: State, start: int, codec: Codec) -> int:
    """Bits of the codes that every bit map has: sinks at the widest tier, all else at the least."""
    total, sinks = 0, _sinks(state, start)
    for at in shapes_of(state, start):
        for dim in (at.head_dim, at.v_head_dim):
            wide = min(sinks, at.tokens) * codec.row_bits(dim, codec.tiers[-1])
            narrow = max(0, at.tokens - sinks) * codec.row_bits(dim, codec.tiers[0])
            total += at.kv_heads * (wide + narrow)
    return total


def spend(state: State, start: int, codec: Codec, how: Spending, budget: int) -> BitMap:
    """Bits for every row from token ``start`` on, at most ``budget`` bits for their codes.

    Raises `BudgetError` or `CaptureError`.
    """
    shapes = shapes_of(state, start)
    scores = None
    if how.scored_by is not None:
        probes = choose_probes(state.ids, how.focus)
        every = salience(state, how.scored_by, probes)
        scores = [
            score[:, score.shape[1] - at.tokens :] for score, at in zip(every, shapes, strict=True)
        ]
    demand = Demand(
        codec=codec,
        shapes=shapes,
        energy=[
            codec.energy(state.layer(number, start, codec.pre_rope))
            for number in range(len(state.layers))
        ],
        salience=scores,
        sinks=_sinks(state, start),
    )
    return how.allocator.allocate(demand, budget)


def _sinks(state: State, start: int) -> int:
    # A sliding layer that has forgotten the first tokens has its first held ones treated so.
    return min(SINKS, len(state.ids) // _TOKENS_PER_SINK) if start == 0 else 0
