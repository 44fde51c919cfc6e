"""What a model keeps of its tokens, found by letting it read a few.

Nothing is assumed of a model's class or of the names in its configuration: its own cache shows
how many heads and numbers each layer keeps, and where. Four questions are answered by comparison.

- Can a codec take the positions out of a layer's keys? One token alone sees only itself, so its
  keys at two positions must differ by the rotation that `Rope` knows, and by nothing else.
- Is a text that was read in two parts the text? Otherwise no cache can be gone on from.
- Does the model go on from a copy of its cache as from the cache itself? Otherwise it keeps
  something that a card does not carry.
- Do the first layer's keys depend on token and position alone? Then they can prove which tokens a
  live cache was made of.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import Any, cast

import torch
from msgspec import structs
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from ...card import Layer, StateTensor
from ...card.errors import UnsupportedModelError
from ...codecs import LayerKV
from ..model.config import text_config
from ..model.rope import Rope
from .compressed import longest_window
from .counting import as_argument, states_alone
from .indexer import of_same_shape
from .layers import (
    attach,
    attention_layers,
    attention_numbers,
    describe,
    empty_cache,
    growing_layers,
    numbered,
)
from .states import describe_states, put_states, take_states

_FAR = 19  # the second position; rotations by it are large
# Relative error of a key that was rotated to another position, in any number format; where a
# rotation is not the model's the error is near 1.
_TOLERANCE = 0.05
# The same of a text that was read in two parts: roundings of many layers in bfloat16 add up, and
# may choose other experts. A text that cannot be gone on from is near 1.
_RESUMED = 0.3
_ROUNDING = 1e-3  # from there on it may be more than rounding, and single tokens are tried


@dataclass(frozen=True)
class Observed:
    """What one model keeps.

    Attributes:
        layers: geometry of the layers that hold keys and values.
        numbers: which of the model's layers they are.
        devices: where each of them keeps them.
        provable: whether the first one's keys say which tokens the cache is of.
        states: what other layers keep, or these beside keys and values.
        state_devices: where they keep them.
        stepwise: behind what it has read, the model must read one token at a time: several at once
            it reads as if nothing were before them.
        told: whether it must be told positions, as ``generate`` does: by itself it counts from
            another number, or from the beginning of what it reads at once.
        empty: a cache of the model, to be copied and left empty: to make one takes long, and it
            knows what its layers will keep.
    """

    layers: list[Layer]
    numbers: list[int]
    devices: list[torch.device]
    provable: bool
    states: list[StateTensor]
    state_devices: list[torch.device]
    stepwise: bool
    told: bool
    empty: DynamicCache


@dataclass(frozen=True)
class _Reader:
    """Reads tokens into a new cache; ``told`` as in `Observed`."""

    model: PreTrainedModel
    told: bool

    def read(
        self, *parts: list[int], start: int | None = None, handed_over: bool = False
    ) -> DynamicCache:
        """All ``parts``, one after the other. ``start`` is the first position, if it is said.

        With ``handed_over`` a copy of the cache goes on after the first part, as from a card.
        """
        device, cache = self.model.device, empty_cache(self.model)
        at, said, more = start or 0, self.told or start is not None, dict[str, Tensor]()
        for part in parts:
            if said:
                more = {"position_ids": torch.arange(at, at + len(part), device=device)[None]}
            given: Any = torch.tensor([part], device=device)
            named = as_argument(self.model, cache)
            cast(Any, self.model)(input_ids=given, use_cache=True, **named, **more)
            cache = self._copy(cache) if handed_over and at == (start or 0) else cache
            at += len(part)
        return cache

    def _copy(self, cache: DynamicCache) -> DynamicCache:
        numbers, states = attention_numbers(cache), describe_states(cache)
        other, seq_len = of_same_shape(empty_cache(self.model), cache), cache.get_seq_length()
        other.layers = growing_layers(other, numbers)
        for slot, layer in zip(numbered(other, numbers), attention_layers(cache), strict=True):
            keys, values = cast(Tensor, layer.keys)[0], cast(Tensor, layer.values)[0]
            buffer = LayerKV(keys.clone(), values.clone())
            attach(slot, buffer, slice(0, keys.shape[1]), seq_len)
        put_states(other, states, take_states(cache, states), seq_len)
        return other


def look(model: PreTrainedModel, told: bool) -> Observed:
    """Read, and compare; positions are ``told`` or not. Raises `UnsupportedModelError`."""
    reader = _Reader(model, told)
    size = text_config(model).vocab_size
    # A window of the longest kind is handed over when it lacks one token, behind a full one.
    window = longest_window(cast(list[Any], empty_cache(model).layers))
    text = [at % size for at in (7, *range(5, 4 + _FAR + 2 * window), 7)]
    middle = 2 * window - 1 if window else _FAR // 2
    alone, before, rest = text[-1:], text[:middle], text[middle:]
    try:
        cache, whole, parts = reader.read(alone), reader.read(text), reader.read(before, rest)
        layers = [describe(number, layer) for number, layer in enumerate(attention_layers(cache))]
        states, stepwise, pieces = describe_states(whole), False, [rest]
        errors = _errors(whole, parts, states)
        if states and max(errors.values()) > _ROUNDING:
            steps = reader.read(before, *([one] for one in rest))
            by_step = _errors(whole, steps, states)
            if stepwise := max(errors.values()) > 4 * max(by_step.values()):
                errors, parts, pieces = by_step, steps, [[one] for one in rest]
        handed_over = reader.read(before, *pieces, handed_over=True)
        if states_alone(whole):
            steps = reader.read(before, *([one] for one in rest), handed_over=True)
            _require_counted(len(text), whole, parts, handed_over, steps)
    except UnsupportedModelError:
        raise
    except Exception as error:  # code of somebody else, which may do anything
        raise UnsupportedModelError(
            f"{type(model).__name__} does not read tokens into its own cache "
            f"({type(error).__name__}: {error}). Hand over text instead."
        ) from error
    for number, off in errors.items():
        if off > _RESUMED:
            raise UnsupportedModelError(
                f"layer {number} of {type(model).__name__} computes something else when a text is "
                "read in parts than when it is read at once, without any card: what it has read "
                "cannot be gone on from. Hand over text instead."
            )
    for number, off in _errors(parts, handed_over, states).items():
        if off > _TOLERANCE:
            raise UnsupportedModelError(
                f"layer {number} of {type(model).__name__} is the first to compute something else "
                "behind a copy of the cache than behind the cache itself: a card does not carry "
                "all that the model keeps. Hand over text instead."
            )
    first = _keys(cache)
    try:
        near, far = (_keys(reader.read(alone, start=at)) for at in (0, _FAR))
    except Exception:  # it takes no positions: nothing can be compared
        near, far = first, []
    if not all(map(_same, near, first)):
        raise UnsupportedModelError(
            f"{type(model).__name__} reads the first token at another position than 0 unless it is "
            "told, as generate does: a cache does not say which. Hand over text instead."
        )
    numbers = attention_numbers(cache)
    rope = Rope(model, numbers)
    return Observed(
        layers=[
            structs.replace(layer, placed=not far or not _rotates(rope, number, first, far))
            for number, layer in enumerate(layers)
        ],
        numbers=numbers,
        devices=[keys.device for keys in first],
        # A first layer with a state, or behind one, has keys that depend on all tokens.
        provable=bool(far) and not states and numbers[0] == 0 and _same(_keys(whole)[0], far[0]),
        states=states,
        state_devices=[state.device for state in take_states(whole, states)],
        stepwise=stepwise,
        told=told,
        empty=of_same_shape(empty_cache(model), whole),
    )


def _require_counted(tokens: int, *caches: DynamicCache) -> None:
    """Raise `UnsupportedModelError` unless all ``caches`` say that they have read ``tokens``."""
    if any(cache.get_seq_length() != tokens for cache in caches):
        raise UnsupportedModelError(
            "no layer of the model keeps keys and values, and what it asks of its cache does not "
            "tell how many tokens it reads. Hand over text instead."
        )


def _errors(
    whole: DynamicCache, parts: DynamicCache, states: list[StateTensor]
) -> dict[int, float]:
    """For each layer how far its last key, and its states, are from those of the ``whole`` text."""
    numbers = [*attention_numbers(whole), *(state.layer for state in states)]
    ones, others = ([*_keys(at), *take_states(at, states)] for at in (whole, parts))
    found = dict.fromkeys(sorted(numbers), 0.0)
    for number, one, other in zip(numbers, ones, others, strict=True):
        error = _error(other.float(), one.float())
        found[number] = max(found[number], error)
    return found


def _keys(cache: DynamicCache) -> list[Tensor]:
    """Of the last token, ``[kv_heads, 1, head_dim]`` each."""
    return [cast(Tensor, layer.keys)[0, :, -1:].float() for layer in attention_layers(cache)]


def _rotates(rope: Rope, number: int, first: list[Tensor], far: list[Tensor]) -> bool:
    """Whether ``rope`` brings a layer's key from position 0 to `_FAR`."""
    try:
        plain = rope.unrotate(number, first[number], range(1))
        return _same(rope.rotate(number, plain, range(_FAR, _FAR + 1)), far[number])
    except Exception:  # the model has functions and modules of other shapes
        return False


def _error(one: Tensor, other: Tensor) -> float:
    """Relative; infinite where it cannot be told."""
    off = (one - other).norm()
    return float(torch.nan_to_num(off / other.norm(), nan=inf, posinf=inf)) if off else 0.0


def _same(one: Tensor, other: Tensor) -> bool:
    return _error(one, other) <= _TOLERANCE
