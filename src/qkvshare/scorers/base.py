"""What a scorer is: how much later queries look at each token, before anybody has asked."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Sight:
    """Which keys each probe sees: bool ``visible [probes, tokens + behind]``.

    Layers of one kind share it, and what is worked out of it.
    """

    visible: Tensor

    @cached_property
    def positions(self) -> Tensor:
        """Which key is each probe's own, the last it sees: int64 ``[probes]``."""
        return self.visible.shape[1] - 1 - self.visible.flip(1).int().argmax(1)

    @cached_property
    def hidden(self) -> Tensor:
        """0 where a probe sees, minus infinity elsewhere: float32 ``[probes, tokens + behind]``."""
        hidden = torch.zeros_like(self.visible, dtype=torch.float32)
        return hidden.masked_fill_(~self.visible, float("-inf"))

    def room(self, heads: int, group: int) -> tuple[Tensor, Tensor]:
        """`hidden` for each of ``group`` query heads, ``[group · probes, tokens + behind]``, and
        memory for ``heads`` of it: to get that anew for every layer takes as long as a softmax."""
        if (heads, group) not in self._rooms:
            hidden = self.hidden.repeat(group, 1)
            self._rooms[heads, group] = hidden, hidden.new_empty(heads, *hidden.shape)
        return self._rooms[heads, group]

    @cached_property
    def _rooms(self) -> dict[tuple[int, int], tuple[Tensor, Tensor]]:
        return {}


@dataclass(frozen=True)
class Glance:
    """One layer's attention as some queries, the probes, see it.

    Attributes:
        queries: ``[kv_heads, group, probes, head_dim]``, after RoPE.
        keys: ``[kv_heads, tokens + behind, head_dim]``, after RoPE.
        sight: what the probes see.
        scaling: what the model multiplies ``queries · keys`` with.
        tokens: how many of the keys are the context's; those behind belong to probes that the
            model read after it.
        turn: rotates vectors ``[heads, n, head_dim]`` by positions ``[n]``, as RoPE does; negative
            positions turn back.
    """

    queries: Tensor
    keys: Tensor
    sight: Sight
    scaling: float
    tokens: int
    turn: Callable[[Tensor, Tensor], Tensor]

    def attention(self) -> Tensor:
        """Probabilities ``[kv_heads, group, probes, tokens + behind]``, float32; in memory that the
        next layer's will be in."""
        heads, group, probes, _ = self.queries.shape
        hidden, room = self.sight.room(heads, group)
        # A query head has no keys of its own: all of a group go through one product.
        rows, keys = self.queries.flatten(1, 2).float(), self.keys.float().mT
        torch.baddbmm(hidden, rows, keys, alpha=self.scaling, out=room)
        return torch.softmax(room, -1, out=room).view(heads, group, probes, -1)

    def slices(self, size: int = 128) -> Iterator[Glance]:
        """The same with ``size`` probes at a time, where the matrix of all would be large."""
        visible = self.sight.visible
        for start in range(0, visible.shape[0], size):
            part = slice(start, start + size)
            yield replace(self, queries=self.queries[:, :, part], sight=Sight(visible[part]))


class Scorer(ABC):
    """Base of all scorers: frozen dataclasses whose fields are their parameters."""

    name: ClassVar[str]
    # Whether the model must read the whole context again behind it, with all of that as probes.
    rereads: ClassVar[bool] = False

    def probes(self, tokens: int) -> Tensor:
        """Which of ``tokens`` queries of a context to look at, ascending, int64 ``[probes]``.

        None for scorers that do without queries: the model need not be watched for them.
        """
        del tokens
        return torch.arange(0)

    @abstractmethod
    def score(self, glance: Glance) -> Tensor:
        """Salience of one layer's tokens, ``[kv_heads, tokens]``, at least 0, in any unit."""


def evenly_spaced(tokens: int, count: int) -> Tensor:
    """``count`` of ``tokens`` numbers, the last one included; all of them where they are fewer."""
    count = min(count, tokens)
    return (torch.arange(1, count + 1) * tokens) // max(count, 1) - 1
