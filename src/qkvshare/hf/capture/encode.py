"""Encode the new tokens of a card. There are three ways to meet ``bits`` per value:

- a codec with tiers has bits allocated to it row by row;
- a codec with steps gets the finest step that fits;
- any other codec is narrowed until the card fits.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from msgspec.structs import replace
from torch import Tensor

from ...allocation import Lagrangian
from ...card import Allocation, CacheCard
from ...card.errors import BudgetError
from ...card.manifest import LOWEST_SLOPE, runs_of
from ...codecs import BitMap, Codec, Demand, Stepped, Tiered
from ...registry import label
from .new_card import NewCard
from .sensitivity import sensitivity
from .steps import fit_step, sample_size
from .strategy import allocator_of, scorer_of

# Bits per number of the codes and what belongs to them, for tokens that come without ``bits``.
DEFAULT_BITS = 4.0


def encode(
    new: NewCard, codec: Codec, salience: Sequence[Tensor] | None, bits: float | None
) -> CacheCard:
    """The card ``new`` with its last segment, at ``bits`` per value of the whole file.

    Without ``bits`` the segment is encoded as finely as those before. ``salience`` of new tokens is
    ``[kv_heads, tokens]`` a layer, or None where nobody asks for it. Raises `BudgetError` where the
    codec has no setting for ``bits``, `CodecError` where it cannot encode these numbers.
    """
    if not new.state.layers:
        return _encode_states(new, codec, bits)
    if isinstance(codec, Tiered):
        return _encode_tiers(new, codec, salience, bits)
    if isinstance(codec, Stepped):
        return _encode_steps(new, codec, salience, bits)
    narrower: Codec | None = codec
    while narrower is not None:
        card = new.card(narrower, Allocation(budget=bits), narrower.encode(new.layers(narrower)))
        if bits is None or card.bits_per_value <= bits:
            return card
        narrower = narrower.narrower()
    raise _impossible(bits, card.tokens, card.bits_per_value)


def _encode_states(new: NewCard, codec: Codec, bits: float | None) -> CacheCard:
    """A card of states alone, whose codec says no more than whether they are rounded."""
    if bits is not None:
        raise BudgetError(
            f"bits={bits:g} is for keys and values, and the model keeps none. Leave it out; "
            "state_bits= says how precise its states are."
        )
    return new.card(codec, Allocation(), [])


def _encode_tiers(
    new: NewCard, codec: Tiered, salience: Sequence[Tensor] | None, bits: float | None
) -> CacheCard:
    allocator, scorer = allocator_of(codec), scorer_of(codec)
    assert allocator is not None
    # The card's size counts in the header, and the header's size depends on the digits in it: of
    # slope and sizes, the most that they can come to have.
    allocation = Allocation(
        scorer=None if scorer is None else label(scorer),
        allocator=label(allocator),
        budget=bits,
        slope=LOWEST_SLOPE if isinstance(allocator, Lagrangian) else None,
    )
    overhead = [codec.overhead(at) for at in new.shapes]
    most = [at.kv_heads * at.tokens * (at.head_dim + at.v_head_dim) for at in new.shapes]
    least, slope = _least_bits(new, codec), None
    if bits is None:
        # Not a promise about the card: new tokens are encoded as finely as those before.
        slope, rate = _as_before(new, codec, allocation.allocator)
        budget = max(int(rate * sum(most)) - 8 * sum(overhead), least)
    else:
        sizes = [one + more for one, more in zip(overhead, most, strict=True)]
        rest = new.nbytes(codec, allocation, sizes) - sum(most)
        budget = int(bits * new.values) - 8 * rest
        if budget < least:
            raise _impossible(bits, len(new.state.ids), (8 * rest + least) / new.values)
    demand = Demand(
        codec=codec,
        shapes=new.shapes,
        energy=codec.energies(new.layers(codec)),
        salience=salience,
        sinks=new.sinks,
        sensitivity=(
            sensitivity(new.state.model, new.identity) if allocator.uses_sensitivity else None
        ),
        model=new.state.model,
        ids=new.state.ids,
    )
    widths: BitMap
    if isinstance(allocator, Lagrangian):
        ladder = allocator.ladder(demand)
        if slope is None:
            slope = ladder.slope(budget)
            widths = ladder.fill(budget, slope)
        else:
            widths = ladder.at(slope)
    else:
        widths, slope = allocator.allocate(demand, budget), None
    allocation = replace(allocation, slope=slope)
    return new.card(codec, allocation, codec.encode(new.layers(codec), widths))


def _least_bits(new: NewCard, codec: Tiered) -> int:
    """Bits of the codes that every bit map has: sinks at the widest tier, all else at the least."""
    total = 0
    for at in new.shapes:
        sinks = min(new.sinks, at.tokens)
        for dim in (at.head_dim, at.v_head_dim):
            wide = sinks * codec.row_bits(dim, codec.tiers[-1])
            narrow = (at.tokens - sinks) * codec.row_bits(dim, codec.tiers[0])
            total += at.kv_heads * (wide + narrow)
    return total


def _as_before(new: NewCard, codec: Codec, allocator: str) -> tuple[int | None, float]:
    """The slope of the last run that was encoded so, if any; and the last bits per value asked for.

    Slopes are comparable where worth is; and tokens that agents append a few at a time, the ones
    that the next agent looks at most, cost more than a context's average.
    """
    runs = [run for n, segment in enumerate(new.segments) for run in runs_of(n, segment)][::-1]
    alike = (
        run.allocation.slope
        for run in runs
        if run.codec.name == codec.name and run.allocation.allocator == allocator
    )
    asked = (run.allocation.budget for run in runs if run.allocation.budget is not None)
    return next(alike, None), next(asked, DEFAULT_BITS)


def _encode_steps(
    new: NewCard, codec: Stepped, salience: Sequence[Tensor] | None, bits: float | None
) -> CacheCard:
    scorer = None if salience is None else scorer_of(codec)
    if salience is None:  # all tokens count alike
        salience = [torch.ones(at.kv_heads, at.tokens) for at in new.shapes]
    exponents = [codec.exponents(at, new.sinks) for at in salience]
    allocation = Allocation(
        scorer=None if scorer is None else label(scorer),
        allocator=codec.allocation,
        budget=bits,
    )

    def make(step: int) -> CacheCard:
        fitted = codec.at(step)
        blobs = fitted.encode(new.layers(codec), exponents=exponents)
        return new.card(fitted, allocation, blobs)

    if bits is None:
        return make(codec.reference if codec.step is None else codec.step)
    rest = new.nbytes(codec.at(0), allocation, [0] * len(new.shapes))
    layers = sample_size(new, codec, exponents)
    alike = (segment.codec for segment in new.segments[::-1] if segment.codec.name == codec.name)
    start = next((int(one.parameters["step"]) for one in alike), codec.reference)
    return fit_step(make, lambda step: rest + layers(step), start, bits * new.values / 8)


def _impossible(bits: float | None, tokens: int, least: float) -> BudgetError:
    return BudgetError(
        f"{bits:g} bits per value cannot be met: the least for these {tokens} "
        f"tokens is {least:.3f}, header and scales included. "
        "Raise it or choose another codec."
    )
