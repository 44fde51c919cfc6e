"""What layers keep beside keys and values, or instead: taken out of a cache, and put into one.

Every token changes the same numbers, so a state belongs to one position and cannot be moved back.
Gated linear attention, Mamba and short convolutions keep theirs in these layers of transformers;
for layers with compressed entries see `qkvshare.hf.cache.compressed`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, cast

from torch import Tensor
from transformers import Cache
from transformers.cache_utils import (
    LinearAttentionAndFullAttentionLayer,
    LinearAttentionAndSlidingWindowAttentionLayer,
    LinearAttentionLayer,
)

from ...card import StateTensor
from ...card.errors import CaptureError, UnsupportedModelError
from ...card.geometry import GROWING
from ...codecs.finite import most
from .compressed import compresses, missing, put, tensors_in
from .growing import FullLayer, SlidingLayer

_DTYPES = ("float32", "bfloat16", "float16", "int64")


class StateFullLayer(LinearAttentionAndFullAttentionLayer, FullLayer):  # type: ignore
    """States, and full attention that grows in place."""

    def __init__(self, number_of_states: int) -> None:
        FullLayer.__init__(self)
        LinearAttentionLayer.__init__(self, number_of_states)


class StateSlidingLayer(LinearAttentionAndSlidingWindowAttentionLayer, SlidingLayer):  # type: ignore
    """States, and sliding-window attention that grows in place."""

    def __init__(self, sliding_window: int, number_of_states: int) -> None:
        SlidingLayer.__init__(self, sliding_window)
        LinearAttentionLayer.__init__(self, number_of_states)


STATE_AND_ATTENTION = (
    LinearAttentionAndFullAttentionLayer,
    LinearAttentionAndSlidingWindowAttentionLayer,
    StateFullLayer,
    StateSlidingLayer,
)


def growing_state(layer: LinearAttentionLayer) -> LinearAttentionLayer:
    """An empty layer of the same kind."""
    count = layer.number_of_states
    if isinstance(layer, LinearAttentionAndFullAttentionLayer):
        return StateFullLayer(count)
    if isinstance(layer, LinearAttentionAndSlidingWindowAttentionLayer):
        return StateSlidingLayer(layer.sliding_window, count)
    return LinearAttentionLayer(count)


def describe_states(cache: Cache) -> list[StateTensor]:
    """Of a cache that has read tokens. Raises `UnsupportedModelError` for other number formats."""
    found = []
    for number, index, kind, tensor in _tensors(cache):
        dtype = str(tensor.dtype).removeprefix("torch.")
        if dtype not in _DTYPES:
            raise UnsupportedModelError(
                f"layer {number} of the model keeps a {kind} state in {dtype}; a card carries "
                f"{', '.join(_DTYPES)}. Hand over text instead."
            )
        shape, every = [*tensor.shape[1:]], None
        if kind in GROWING:
            shape, every = shape[1:], cast(Any, cache.layers[number]).compress_rate
        found.append(StateTensor(number, kind, index, shape, dtype, every))  # type: ignore
    return sorted(found, key=lambda at: (at.layer, at.kind, at.index))


def take_states(cache: Cache, states: Sequence[StateTensor], row: int = 0) -> list[Tensor]:
    """A copy of what the layers of ``cache`` keep, each tensor of its ``shape``; of sequence
    ``row``. Raises `CaptureError` where it is not as described, or not finite."""
    found = {(number, kind, index): at for number, index, kind, at in _tensors(cache)}
    out = []
    for state in states:
        layer: Any = cache.layers[state.layer]
        expected = state.shape if state.every is None else state.after(layer.get_seq_length()).shape
        tensor = found.get((state.layer, state.kind, state.index))
        tensor = missing(layer, state) if tensor is None else tensor
        if tensor is None or [*tensor.shape[1:]] != expected:
            raise CaptureError(
                f"the {state.kind} state of layer {state.layer} has shape "
                f"{None if tensor is None else [*tensor.shape[1:]]}, expected {expected}."
            )
        # NaN is not below it either.
        numbers = tensor[row]
        if numbers.is_floating_point() and not (numbers.abs() <= most(tensor.dtype)).all():
            raise CaptureError(
                f"the {state.kind} state of layer {state.layer} contains NaN, infinity or numbers "
                f"beyond {most(tensor.dtype):g}; no receiver takes such a card. The model "
                "overflowed: load it in bfloat16 or float32."
            )
        out.append(numbers.detach().clone())
    return out


def put_states(
    cache: Cache, states: Sequence[StateTensor], tensors: Sequence[Tensor], seq_len: int
) -> None:
    """Make ``tensors``, which are the cache's from now on, the state of its layers.

    They are of ``seq_len`` tokens, which a `CountingCache` needs to be told.
    """
    cast(Any, cache).seq_len = seq_len
    for state, tensor in zip(states, tensors, strict=True):
        layer: Any = cache.layers[state.layer]
        if compresses(layer):
            put(layer, state.kind, state.index, tensor[None], seq_len)
            continue
        layer.has_previous_state[state.index] = True
        if state.kind == "recurrent":
            layer.recurrent_states[state.index] = tensor[None]
            layer.is_recurrent_states_initialized[state.index] = True
        else:
            layer.conv_states[state.index] = tensor[None]
            layer.is_conv_states_initialized[state.index] = True
            layer.conv_kernel_size[state.index] = tensor.shape[-1]
            if state.index == 0 or layer.device is None:
                layer.dtype, layer.device = tensor.dtype, tensor.device


def repeat_states(cache: Cache, batch: int) -> None:
    """Give ``batch`` sequences the state of the one that the cache has."""
    for number, index, kind, tensor in _tensors(cache):
        if len(tensor) != batch:
            layer: Any = cache.layers[number]
            rows = tensor.expand(batch, *tensor.shape[1:]).clone()
            if compresses(layer):
                put(layer, kind, index, rows, layer.get_seq_length())
            else:
                of = layer.conv_states if kind == "conv" else layer.recurrent_states
                of[index] = rows


def states_batch(cache: Cache) -> int:
    """How many sequences the cache has states of; 0 without states."""
    return max([len(tensor) for *_, tensor in _tensors(cache)], default=0)


def keep_gradients(cache: Cache) -> None:
    """Let states be replaced, not overwritten: gradients need them as they were."""
    for layer in cast(list[Any], cache.layers):
        if isinstance(layer, LinearAttentionLayer):
            layer.update_recurrent_state = partial(_replace, layer)  # type: ignore[method-assign]


def _replace(layer: Any, recurrent_states: Tensor, state_idx: int = 0, **_: Any) -> Tensor:
    layer.recurrent_states[state_idx] = recurrent_states
    layer.is_recurrent_states_initialized[state_idx] = True
    return recurrent_states


def _tensors(cache: Cache) -> list[tuple[int, int, str, Tensor]]:
    """Layer, index, kind and tensor ``[batch, …]`` of each state that the cache has."""
    found: list[tuple[int, int, str, Tensor]] = []
    for number, layer in enumerate(cast(list[Any], cache.layers)):
        if isinstance(layer, LinearAttentionLayer):
            for index in range(layer.number_of_states):
                if layer.is_conv_states_initialized[index]:
                    # More inputs than the convolution needs are kept for a roll back.
                    inputs: Any = layer.conv_states[index]
                    size: Any = layer.conv_kernel_size[index]
                    found.append((number, index, "conv", inputs[..., -size:]))
                if layer.is_recurrent_states_initialized[index]:
                    sums: Any = layer.recurrent_states[index]
                    found.append((number, index, "recurrent", sums))
        elif compresses(layer):
            found += [(number, *at) for at in tensors_in(layer)]
    return found
