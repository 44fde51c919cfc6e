"""Find a codec's step for a budget: on a sample of the tokens first, then on all."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from ...card import CacheCard
from ...card.errors import BudgetError
from ...codecs import LayerKV, Stepped
from .new_card import NewCard

_SAMPLE = 256  # tokens
_FARTHEST = 12 * 64  # from where the search starts
_NEAR = 0.98  # of the budget
_ROUNDS = 4  # cards made at most


def sample_size(
    new: NewCard, codec: Stepped, exponents: Sequence[npt.NDArray[np.int32]]
) -> Callable[[int], float]:
    """What a step makes of all layers, in bytes, as a sample of the tokens tells.

    Tokens are coded one by one, so a sample costs its share; the first ones, which have steps of
    their own, are counted apart.
    """
    state, start, end = new.state, new.start, len(new.state.ids)
    head = np.arange(start, min(end, start + 4))
    rest = np.arange(start + 4, end)
    few = rest[:: max(1, len(rest) // _SAMPLE)]
    share = len(rest) / max(1, len(few))
    whole = [state.layer(number, start, codec.pre_rope) for number in range(len(state.layers))]
    first = [end - layer.keys.shape[1] for layer in whole]

    def pick(tokens: npt.NDArray[np.int64]) -> tuple[list[LayerKV], list[npt.NDArray[np.int32]]]:
        chosen = [tokens[tokens >= at] - at for at in first]
        layers = [
            LayerKV(layer.keys[:, at], layer.values[:, at])
            for layer, at in zip(whole, chosen, strict=True)
        ]
        return layers, [own[at] for own, at in zip(exponents, chosen, strict=True)]

    parts = [(pick(head), 1.0), (pick(few), share)]

    def size(step: int) -> float:
        return sum(
            weight * sum(blob.nbytes for blob in codec.at(step).encode(layers, exponents=own))
            for (layers, own), weight in parts
            if own[0].size
        )

    return size


def fit_step(
    make: Callable[[int], CacheCard], size: Callable[[int], float], start: int, budget: float
) -> CacheCard:
    """The card with the finest step within ``budget`` bytes, usually within 2 % of it.

    ``size`` estimates the bytes of the card that ``make`` makes; a step near ``start`` is found
    sooner. Raises `BudgetError`.
    """
    step, fall = _search(size, start, budget)
    best: CacheCard | None = None
    for _ in range(_ROUNDS):
        card = make(step)
        nbytes = card.context_bytes
        if nbytes <= budget and (best is None or nbytes > best.context_bytes):
            best = card
        if _NEAR * budget <= nbytes <= budget:
            break
        off = (nbytes - (1 + _NEAR) / 2 * budget) / fall
        step += math.ceil(off) if off > 0 else math.floor(off)
    if best is None:
        raise BudgetError(
            f"{budget:,.0f} bytes cannot be met: with the coarsest step tried the card "
            f"has {nbytes:,}. Raise it."
        )
    return best


def _search(size: Callable[[int], float], start: int, target: float) -> tuple[int, float]:
    """A step where ``size`` is near ``target``, and the bytes that 1/64 octave saves there."""
    fine, coarse = start, start
    largest = smallest = size(start)
    while largest < target and start - fine < _FARTHEST:
        coarse, smallest = fine, largest
        fine -= 64
        largest = size(fine)
    while smallest > target and coarse - start < _FARTHEST:
        fine, largest = coarse, smallest
        coarse += 64
        smallest = size(coarse)
    fall = max(1.0, (largest - smallest) / max(1, coarse - fine))
    for _ in range(2):
        if coarse - fine <= 1 or not smallest <= target <= largest:
            break
        at = min(max(fine + round((largest - target) / fall), fine + 1), coarse - 1)
        found = size(at)
        if found > target:
            fine, largest = at, found
        else:
            coarse, smallest = at, found
        fall = max(1.0, (largest - smallest) / (coarse - fine))
    step = fine + round((largest - target) / fall)
    return min(max(step, start - _FARTHEST), start + _FARTHEST), fall
