"""From a live cache and a budget to a bit map: score, then allocate."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ...allocation import Lagrangian
from ...card import Identity
from ...card.digest import TokenIds
from ...card.errors import CodecError, UnsupportedModelError
from ...codecs import Allocator, BitMap, Codec, Demand, Shape, Stepped, Tiered
from ...codecs.tiered import SINKS
from ...scoring import AttentionProbe, AttentionScorer, Scorer, Visibility
from .probe import Watch, choose_probes, watched
from .sensitivity import sensitivity
from .state import State

# Fewer tokens than this per sink, and sinks would eat what the others need.
_TOKENS_PER_SINK = 64


@dataclass(frozen=True)
class Spending:
    """How capture spends bits: who scores and who allocates.

    ``allocator`` is None for codecs with steps, which turn scores into exponents themselves.
    """

    scorer: Scorer | None
    allocator: Allocator | None

    @property
    def scored_by(self) -> Scorer | None:
        """The scorer that is really asked."""
        return self.scorer if self.allocator is None or self.allocator.uses_salience else None


def spending(codec: Codec) -> Spending | None:
    """Who scores and allocates for ``codec``; None where it treats all rows alike.

    Raises `CodecError` for a scorer that would not be asked.
    """
    if isinstance(codec, Stepped):
        return Spending(codec.scorer or AttentionScorer(), None)
    if not isinstance(codec, Tiered):
        return None
    allocator = codec.allocator or Lagrangian()
    if codec.scorer is not None and not allocator.uses_salience:
        raise CodecError(
            f"the allocator {allocator.name!r} asks no scorer, so "
            f"{codec.scorer.name!r} would change nothing. Leave the scorer out, or choose an "
            "allocator that asks one, such as 'lagrangian'."
        )
    return Spending(codec.scorer or AttentionScorer(), allocator)


def with_allocation(
    codec: Codec, scorer: Scorer | None = None, allocator: Allocator | None = None
) -> Codec:
    """``codec`` with another scorer and another allocator, where they are given.

    Raises `CodecError` for a codec that takes none.
    """
    given = {"scorer": scorer, "allocator": allocator}
    chosen: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    fields = {field.name for field in dataclasses.fields(codec)}  # type: ignore[arg-type]
    for name, value in chosen.items():
        if name not in fields:
            raise CodecError(
                f"the codec {codec.name!r} takes no {name}, so {value.name!r} would change "
                "nothing. Leave it out, or choose a codec with tiers, such as 'packed'."
            )
    changed: Codec = dataclasses.replace(codec, **chosen)  # type: ignore[type-var]
    return changed


def shapes_of(state: State, start: int) -> list[Shape]:
    """Geometry of what each layer holds from token ``start`` on."""
    return [
        Shape.of(layer, len(state.ids) - max(start, state.first(number)))
        for number, layer in enumerate(state.layers)
    ]


def least_bits(state: State, start: int, codec: Tiered) -> int:
    """Bits of the codes that every bit map has: sinks at the widest tier, all else at the least."""
    total, sinks = 0, _sinks(state, start)
    for at in shapes_of(state, start):
        for dim in (at.head_dim, at.v_head_dim):
            wide = min(sinks, at.tokens) * codec.row_bits(dim, codec.tiers[-1])
            narrow = max(0, at.tokens - sinks) * codec.row_bits(dim, codec.tiers[0])
            total += at.kv_heads * (wide + narrow)
    return total


@dataclass(frozen=True)
class Spent:
    """Bits for every row, and the slope at which they were given by a `Lagrangian`."""

    bits: BitMap
    slope: int | None


def spend(
    state: State,
    start: int,
    codec: Tiered,
    how: Spending,
    identity: Identity,
    budget: int,
    slope: int | None = None,
) -> Spent:
    """Bits for every row from token ``start`` on, at most ``budget`` bits for their codes.

    With ``slope``, as many as it gives, whatever the budget. ``identity`` is the model's. Raises
    `BudgetError`, `CaptureError` or `UnsupportedModelError`.
    """
    assert how.allocator is not None
    shapes = shapes_of(state, start)
    scores = None if how.scored_by is None else _salience_from(state, start, how)
    demand = Demand(
        codec=codec,
        shapes=shapes,
        energy=codec.energies(state.for_codec(codec, start)),
        salience=scores,
        sinks=_sinks(state, start),
        sensitivity=(
            sensitivity(state.model, identity) if how.allocator.uses_sensitivity else None
        ),
        model=state.model,
        ids=state.ids,
    )
    if not isinstance(how.allocator, Lagrangian):
        return Spent(how.allocator.allocate(demand, budget), None)
    ladder = how.allocator.ladder(demand)
    if slope is not None:
        return Spent(ladder.at(slope), slope)
    found = ladder.slope(budget)
    return Spent(ladder.fill(budget, found), found)


def spend_steps(
    state: State, start: int, codec: Stepped, how: Spending
) -> list[npt.NDArray[np.int32]]:
    """Exponents of the steps of the tokens from ``start`` on, for each layer."""
    sinks = _sinks(state, start)
    return [codec.exponents(at, sinks) for at in _salience_from(state, start, how)]


def _salience_from(state: State, start: int, how: Spending) -> list[Tensor]:
    assert how.scored_by is not None
    scores = salience(state, how.scored_by)
    return [
        score[:, score.shape[1] - at.tokens :]
        for score, at in zip(scores, shapes_of(state, start), strict=True)
    ]


def salience(state: State, scorer: Scorer) -> list[Tensor]:
    """Salience of each layer's held tokens, ``[kv_heads, tokens]`` with mean 1, float32.

    What ``scorer`` said while the context was read; where it was not asked, probes are read behind
    the context. Raises `UnsupportedModelError` for models whose attention cannot be watched.
    """
    seen = state.scores.get(scorer)
    if seen is None and len(scorer.probes(len(state.ids))) == 0:
        seen = [scorer.score(_unlooked(held.keys)) for held in state.held]
    elif seen is None:
        seen = look_back(state, scorer, state.ids if scorer.rereads else choose_probes(state.ids))
    out = []
    for score, held in zip(seen, state.held, strict=True):
        # A token that only a roll back can need has left the window: nobody looks at it.
        missing = held.keys.shape[1] - score.shape[1]
        fitting = torch.nn.functional.pad(score, (missing, 0))
        out.append(fitting / fitting.mean().clamp(min=1e-30))
    return out


def _unlooked(keys: Tensor) -> AttentionProbe:
    """A layer that no query looks at."""
    kv_heads, tokens, dim = keys.shape
    nobody = torch.zeros(0, tokens, dtype=torch.bool, device=keys.device)
    queries = keys.new_zeros(kv_heads, 1, 0, dim)
    return AttentionProbe(queries, keys, Visibility(nobody), 1.0, tokens, lambda x, _: x)


def look_back(state: State, scorer: Scorer, probes: TokenIds) -> list[Tensor]:
    """What ``scorer`` says when ``probes`` are read behind the context, a score a layer."""
    model = state.model
    tokens = torch.from_numpy(probes).long()[None].to(model.device)
    watch = Watch(model, [scorer], behind=len(probes))
    with watched(model, watch), torch.no_grad():
        decoder = cast(Any, model).get_decoder()
        decoder(input_ids=tokens, past_key_values=state.cache(), use_cache=True)
    found = watch.scores.get(scorer, {})
    if len(found) != len(state.held):
        raise UnsupportedModelError(
            f"{type(model).__name__} lets {len(found)} of its {len(state.held)} attention layers "
            "be observed, so its tokens cannot be scored. Choose an allocator that needs no "
            "scorer, such as 'lagrangian:share=0'."
        )
    return list(found.values())


def _sinks(state: State, start: int) -> int:
    # A sliding layer that has forgotten the first tokens has its first held ones treated so.
    return min(SINKS, len(state.ids) // _TOKENS_PER_SINK) if start == 0 else 0
