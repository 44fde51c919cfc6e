"""What can be measured of a model before its tokens are encoded; what cannot is done without."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from ...allocation import Lagrangian
from ...card import Identity
from ...card.errors import UnsupportedModelError
from ...codecs import Codec, Tiered
from .salience import salience
from .sensitivity import sensitivity
from .state import State
from .strategy import allocator_of, scorer_of, with_strategy


def measured(
    state: State, identity: Identity, codec: Codec, start: int
) -> tuple[Codec, Sequence[Tensor] | None]:
    """The codec as it will encode, and the salience of tokens from ``start`` on.

    A model whose attention cannot be watched, or that gradients do not pass, gets an allocation
    that does without: bits are spent evenly there, and a warning says so. Raises
    `UnsupportedModelError` where the caller chose the scorer or allocator that needs them.
    """
    if not state.layers:
        return codec, None
    scorer, allocator, scores = scorer_of(codec), allocator_of(codec), None
    if scorer is not None:
        try:
            scores = salience(state, scorer, start)
        except UnsupportedModelError as error:
            if getattr(codec, "scorer", None) is not None:
                raise
            _say("all tokens count alike", error)
            if isinstance(codec, Tiered):
                codec = _without(codec, error, share=0)
    if allocator is not None and allocator.uses_sensitivity:
        try:
            sensitivity(state.model, identity)
        except UnsupportedModelError as error:
            assert isinstance(codec, Tiered)
            codec = _without(codec, error, sensitivity=0)
            _say("all heads count alike", error)
    return codec, scores


def _without(codec: Tiered, error: UnsupportedModelError, **fields: float) -> Tiered:
    """The codec with the default allocator, but for ``fields``. Raises ``error`` where the caller
    chose another."""
    allocator = codec.allocator or Lagrangian()
    if not isinstance(allocator, Lagrangian):
        raise error
    changed = with_strategy(codec, allocator=replace(allocator, **fields))
    assert isinstance(changed, Tiered)
    return changed


def _say(what: str, error: UnsupportedModelError) -> None:
    warnings.warn(f"{what}, since {error}", stacklevel=3)
