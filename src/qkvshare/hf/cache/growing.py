"""Cache layers that grow in place, in steps of `STEP` tokens.

``DynamicLayer`` concatenates the whole context for every token that is generated. Here keys and
values are views of a larger buffer, and a new token is written behind them. What ``generate`` does
to a layer (crop, reorder, repeat, select) makes other views or other tensors; the next token finds
out whether they still lie in the buffer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor
from transformers.cache_utils import (
    DynamicIndexedLayer,
    DynamicLayer,
    DynamicSlidingWindowLayer,
)

from ...codecs import LayerKV
from ..attention import NAME

STEP = 256  # tokens


class FullLayer(DynamicLayer):  # type: ignore[no-untyped-call]
    """Full attention; keys and values are views of buffers ``[batch, kv_heads, tokens, dim]``."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._buffers = dict[str, Tensor]()

    @property
    def _step(self) -> int:
        return STEP

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Append ``[batch, kv_heads, new, dim]``; returns all keys and values."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self.keys = self._append("keys", key_states)
        self.values = self._append("values", value_states)
        return self.keys, self.values

    def _append(self, name: str, new: Tensor) -> Tensor:
        """The layer's keys or values, and ``new`` behind them."""
        old: Tensor = getattr(self, name)
        if old.numel() == 0:  # of any shape, where the layer is empty
            old = new[:, :, :0].to(old.dtype)
        buffer, tokens, count = self._buffers.get(name), old.shape[2], new.shape[2]
        start = None if buffer is None or len(old) != len(new) else _offset(buffer, old)
        if buffer is None or start is None or start + tokens + count > buffer.shape[2]:
            start, size = 0, tokens + count + self._step
            with torch.inference_mode(False):  # so that it can be written outside of it, too
                buffer = old.new_empty(len(new), old.shape[1], size, old.shape[3])
            buffer[:, :, :tokens] = old  # repeated for beams or samples
            self._buffers[name] = buffer
        buffer.narrow(2, start + tokens, count).copy_(new)
        return buffer.narrow(2, start, tokens + count)

    def attach(self, buffer: LayerKV, used: slice, seq_len: int) -> None:
        """Make tokens ``used`` of ``buffer`` the state of this empty layer.

        ``buffer`` has ``[kv_heads, tokens, dim]`` and is the layer's from now on. ``seq_len`` is
        how many tokens the layer has seen.
        """
        if seq_len == 0:
            return
        keys, values = buffer.keys[None], buffer.values[None]
        self._buffers = {"keys": keys, "values": values}
        self.keys, self.values = keys[:, :, used], values[:, :, used]
        self.dtype, self.device, self.is_initialized = keys.dtype, keys.device, True

    def __copy__(self) -> Self:
        """Shares keys and values, but no buffer: two layers would write over each other."""
        other = self.__class__.__new__(self.__class__)
        other.__dict__.update(self.__dict__, _buffers={})
        return other


def _offset(buffer: Tensor, part: Tensor) -> int | None:
    """At which token of ``buffer`` its view ``part`` begins; None if it lies elsewhere."""
    if (
        buffer.untyped_storage().data_ptr() != part.untyped_storage().data_ptr()
        or buffer.stride() != part.stride()
        or buffer.shape[:2] != part.shape[:2]
    ):
        return None
    offset, token = part.storage_offset() - buffer.storage_offset(), buffer.stride(2)
    return offset // token if offset >= 0 and offset % token == 0 else None


class HalfLayer(FullLayer):  # type: ignore[no-untyped-call]
    """Full attention in bfloat16, for a model that computes in float32.

    A lossy codec leaves hardly more of a number than bfloat16 holds (docs/results/ttft.md has the
    price). Attention `qkvshare` reads the numbers as they are. For any other attention they are
    converted to float32 at each call.
    """

    def __init__(self, config: Any) -> None:
        """``config`` is the model's, which names the attention function."""
        super().__init__()
        # A function, since copies of a cache share it.
        self._reads_half: Callable[[], bool] = lambda: config._attn_implementation == NAME

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """As `FullLayer`, in bfloat16."""
        super().lazy_initialization(key_states[:0].bfloat16(), value_states[:0].bfloat16())

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """As `FullLayer.update`; new numbers are rounded."""
        keys, values = super().update(key_states, value_states, *args, **kwargs)
        if self._reads_half():
            return keys, values
        return keys.to(key_states.dtype), values.to(value_states.dtype)


class SlidingLayer(DynamicSlidingWindowLayer, FullLayer):  # type: ignore[no-untyped-call]
    """Sliding-window attention: the window moves through its buffer, and back when it has come to
    the end."""

    @property
    def _step(self) -> int:
        return max(STEP, self.sliding_window)

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """As `FullLayer.update`; only what later tokens can see is kept."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self.cumulative_length += key_states.shape[-2]
        keys = self._append("keys", key_states)
        values = self._append("values", value_states)
        if self.record_past:  # until `crop` says what is not needed any more
            self.keys, self.values = keys, values
            seen = self.sliding_window - 1 + key_states.shape[-2]
            return keys[:, :, -seen:], values[:, :, -seen:]
        self.keys = keys[:, :, -self.sliding_window + 1 :]
        self.values = values[:, :, -self.sliding_window + 1 :]
        return keys, values

    def attach(self, buffer: LayerKV, used: slice, seq_len: int) -> None:
        """As `FullLayer.attach`."""
        super().attach(buffer, used, seq_len)
        if seq_len:
            self._sliding_window_tensor = self._sliding_window_tensor.to(self.device)
            # Masks and positions are computed from it.
            self.cumulative_length = seq_len


class IndexedLayer(DynamicIndexedLayer, FullLayer):  # type: ignore[no-untyped-call]
    """Full attention beside an indexer's keys, which grow as those of transformers do."""


def growing(layer: DynamicLayer) -> FullLayer:
    """An empty layer of the same kind."""
    if isinstance(layer, DynamicIndexedLayer):
        other = IndexedLayer()  # type: ignore[no-untyped-call]
        other.__dict__.update(vars(layer))
        return other
    if isinstance(layer, DynamicSlidingWindowLayer):
        return SlidingLayer(layer.sliding_window)
    return FullLayer()
