"""Layers in bfloat16 of a model that computes in float32.

What a lossy codec has left of a number is hardly more than bfloat16 holds (docs/results/ttft.md has
the price): half the memory, of which half as much is read for every token.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..attention import NAME
from .growing import FullLayer

HALF = torch.bfloat16


class HalfLayer(FullLayer):  # type: ignore[no-untyped-call]
    """Full attention. Attention `qkvshare` reads the numbers as they are; any other is given all of
    them in float32, made anew at each call."""

    def __init__(self, config: Any) -> None:
        """Empty; ``config`` is the model's, which names the attention function."""
        super().__init__()
        # A function, since those are the same in copies of a cache.
        self._read_as_it_is: Callable[[], bool] = lambda: config._attn_implementation == NAME

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """As `FullLayer`, in bfloat16."""
        super().lazy_initialization(key_states[:0].to(HALF), value_states[:0].to(HALF))

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """As `FullLayer.update`; what is written is rounded."""
        keys, values = super().update(key_states, value_states, *args, **kwargs)
        if self._read_as_it_is():
            return keys, values
        return keys.to(key_states.dtype), values.to(value_states.dtype)
