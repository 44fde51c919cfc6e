"""Cache layers that grow in place: room for more tokens is there before they come.

``DynamicLayer`` concatenates the whole context for every token that is generated. Here keys and
values are views of a larger tensor, and a token is written behind them. What `generate` does to
a layer (crop, reorder, repeat, select) makes other views or tensors of them, as in transformers;
the next token finds out whether it still fits.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Self

import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from ...codecs import LayerKV

SPARE = 256  # tokens; doubled each time that they are used up
_PARTS = ("keys", "values")


class _Last(NamedTuple):
    """``held`` of ``batch`` sequences has tokens ``start`` to ``end`` of a room for ``most``."""

    held: Tensor
    batch: int
    start: int
    end: int
    most: int


class _Growing(DynamicLayer):  # type: ignore[no-untyped-call]
    """Where both kinds keep their room: ``[batch, kv_heads, tokens and spare, dim]``, two; and
    where in it what was written last lies, which takes longer to find out than to write."""

    _rooms: dict[str, Tensor]
    _last: dict[str, _Last]
    _spare: dict[str, int]  # tokens

    def _append(self, name: str, new: Tensor) -> Tensor:
        """What is held and ``new`` behind it, ``[batch, kv_heads, tokens, dim]``."""
        held: Tensor = getattr(self, name)
        batch, _, count, _ = new.shape
        last = self._last.get(name)
        if last is None or last.held is not held or last.batch != batch:
            last = self._find(name, held, new)
        if last is None or last.end + count > last.most:
            if last is not None:
                self._used_up(name)
            last = self._move(name, held, new)
        room, start, end = self._rooms[name], last.start, last.end + count
        room.narrow(2, last.end, count).copy_(new)
        whole = room.narrow(2, start, end - start)
        self._last[name] = _Last(whole, batch, start, end, last.most)
        return whole

    def _find(self, name: str, held: Tensor, new: Tensor) -> _Last | None:
        """Where in its room ``held`` lies, if it does."""
        room = self._rooms.get(name)
        start = None if room is None or len(held) != len(new) else _place(room, held)
        if room is None or start is None:
            return None
        return _Last(held, len(held), start, start + held.shape[2], room.shape[2])

    def _move(self, name: str, held: Tensor, new: Tensor) -> _Last:
        """A new room for ``held`` and ``new``, and what is spare; ``held`` is there."""
        if held.numel() == 0:
            held = new[:, :, :0].to(held.dtype)
        batch, tokens = len(new), held.shape[2]
        most = tokens + new.shape[2] + self._spare[name]
        with torch.inference_mode(False):  # so that it can be written outside of it, too
            room = held.new_empty(batch, held.shape[1], most, held.shape[3])
        self._rooms[name] = room
        room[:, :, :tokens] = held  # beams or samples of one sequence too
        return _Last(room, batch, 0, tokens, most)

    def _used_up(self, name: str) -> None:
        """Keys or values have come to the end of their room; the next one has more to spare."""
        self._spare[name] *= 2

    def take(self, room: LayerKV, held: slice, seen: int) -> None:
        """Make tokens ``held`` of ``room`` the state of an empty layer that has seen ``seen``.

        ``room`` has ``[kv_heads, tokens and spare, dim]`` and is the layer's from now on.
        """
        if seen == 0:
            return
        self.dtype, self.device, self.is_initialized = room.keys.dtype, room.keys.device, True
        for name in _PARTS:
            self._rooms[name] = whole = getattr(room, name).unsqueeze(0)
            kept = whole.narrow(2, held.start, held.stop - held.start)
            setattr(self, name, kept)
            self._last[name] = _Last(kept, 1, held.start, held.stop, whole.shape[2])
        if isinstance(self, SlidingLayer):
            self._sliding_window_tensor = self._sliding_window_tensor.to(self.device)
            # The true length: masks and positions are computed from it, not from what is held.
            self.cumulative_length = seen

    def __copy__(self) -> Self:
        """Shares keys and values, but no room: two that grow would write over each other."""
        other = self.__class__.__new__(self.__class__)
        other.__dict__.update(self.__dict__, _rooms={}, _last={}, _spare={**self._spare})
        return other


def _place(room: Tensor, held: Tensor) -> int | None:
    """At which token of ``room`` ``held`` begins; None if it lies elsewhere."""
    if (
        room.untyped_storage().data_ptr() != held.untyped_storage().data_ptr()
        or room.stride() != held.stride()
        or room.shape[:2] != held.shape[:2]
    ):
        return None
    offset = held.storage_offset() - room.storage_offset()
    token = room.stride(-2)
    return offset // token if offset >= 0 and offset % token == 0 else None


class FullLayer(_Growing):  # type: ignore[no-untyped-call]
    """Full attention."""

    def __init__(self) -> None:
        """Empty."""
        super().__init__()  # type: ignore[no-untyped-call]
        self._rooms, self._last, self._spare = {}, {}, dict.fromkeys(_PARTS, SPARE)

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Write ``[batch, kv_heads, new, dim]`` behind what is held; returns all of it."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self.keys = self._append("keys", key_states)
        self.values = self._append("values", value_states)
        return self.keys, self.values


class SlidingLayer(DynamicSlidingWindowLayer, _Growing):  # type: ignore[no-untyped-call]
    """Sliding-window attention: the window moves through the room, and back when it has come to
    the end."""

    def __init__(self, sliding_window: int) -> None:
        """Empty; ``sliding_window`` in tokens."""
        super().__init__(sliding_window)
        self._rooms, self._last = {}, {}
        self._spare = dict.fromkeys(_PARTS, max(SPARE, sliding_window))

    def _used_up(self, name: str) -> None:
        """A window is short: it is moved to the front of an equal room."""

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """As `FullLayer.update`; only what later tokens can see stays held."""
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


def growing(layer: DynamicLayer) -> FullLayer | SlidingLayer:
    """An empty layer of the same kind."""
    if isinstance(layer, DynamicSlidingWindowLayer):
        return SlidingLayer(layer.sliding_window)
    return FullLayer()
