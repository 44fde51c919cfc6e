"""Sliding-window layers that keep one compressed entry for each window of tokens behind them.

DeepSeek V4 has such layers. Entries are appended and never changed. Beside them the layer keeps the
inputs of the window that is still open, and those of the last full one where windows overlap. All
of these are states for a card; the names of attributes are the layer's own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from functools import cache
from typing import Any, NamedTuple

from torch import Tensor
from transformers.cache_utils import DynamicSlidingWindowLayer

from ...card import StateTensor
from .growing import SlidingLayer

_COUNTS = "entry_count"
# What a layer may have, by what it keeps of the tokens; the first three it must have.
_KINDS = {
    "compressed_kv": "compressed",
    "buffer_kv": "open",
    "buffer_gate": "open",
    "overlap_kv": "overlap",
    "overlap_gate": "overlap",
}
_LEAST = {"compress_rate", _COUNTS, *[*_KINDS][:3]}
_MOST = {*_LEAST, *_KINDS}
_USUAL = {*vars(SlidingLayer(2)), "dtype", "device"}


class Place(NamedTuple):
    """One tensor of a layer: ``layer.attribute[name]``, of this ``number`` among its ``kind``."""

    kind: str
    number: int
    attribute: str
    name: str


def compresses(layer: Any) -> bool:
    """Whether ``layer`` is sliding-window attention with compressed entries, and nothing else."""
    if not isinstance(layer, DynamicSlidingWindowLayer):
        return False
    added = vars(layer).keys() - _USUAL
    return _LEAST <= added <= _MOST and layer.compress_rate > 1  # type: ignore[attr-defined]


def longest_window(layers: list[Any]) -> int:
    """The most tokens of which a layer makes one entry; 0 where none does."""
    return max((layer.compress_rate for layer in layers if compresses(layer)), default=0)


def places(layer: Any) -> Iterator[Place]:
    """Where ``layer`` keeps tensors, in an order that is the same for all layers of a class."""
    found = Counter[str]()
    for attribute, kind in _KINDS.items():
        for name in getattr(layer, attribute, ()):
            yield Place(kind, found[kind], attribute, name)
            found[kind] += 1


def tensors_in(layer: Any) -> Iterator[tuple[int, str, Tensor]]:
    """Index, kind and tensor ``[batch, …]`` of what ``layer`` has.

    What it will have of its last full window is missing before there is one.
    """
    for kind, index, attribute, name in places(layer):
        tensor: Tensor | None = getattr(layer, attribute)[name]
        if tensor is not None:
            yield index, kind, tensor


def missing(layer: Any, state: StateTensor) -> Tensor | None:
    """Zeros ``[batch, …]`` for a state that ``layer`` has none of yet."""
    if not compresses(layer) or state.kind != "overlap" or layer.keys is None:
        return None
    if layer.get_seq_length() >= layer.compress_rate:
        return None
    dtype = layer.buffer_kv[next(iter(layer.buffer_kv))].dtype
    zeros: Tensor = layer.keys.new_zeros(len(layer.keys), *state.shape, dtype=dtype)
    return zeros


def put(layer: Any, kind: str, index: int, tensor: Tensor, seq_len: int) -> None:
    """Make ``tensor [batch, …]``, after ``seq_len`` tokens, what ``layer`` keeps there."""
    (at,) = (at for at in places(layer) if (at.kind, at.number) == (kind, index))
    empty = kind == "overlap" and seq_len < layer.compress_rate
    getattr(layer, at.attribute)[at.name] = None if empty else tensor
    getattr(layer, _COUNTS)[at.name] = seq_len // layer.compress_rate


def grown(layer: Any) -> SlidingLayer:
    """What ``layer`` has, in a layer that grows in place and can remember what left its window."""
    kind: Any = type(layer)
    kind = _grown_class(kind)
    other: SlidingLayer = kind.__new__(kind)
    own = {name: dict(at) if isinstance(at, dict) else at for name, at in vars(layer).items()}
    other.__dict__.update(own, _buffers={})
    return other


@cache
def _grown_class(kind: Any) -> Any:
    if issubclass(kind, SlidingLayer):
        return kind
    # Not registered under the name that ``kind`` has: no other cache should be made of these.
    return type(kind.__name__, (SlidingLayer, kind), {"__copy__": grown, "_layer_type": None})
