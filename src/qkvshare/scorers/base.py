"""What a scorer is: how much later queries look at each token, before anybody has asked."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor


@dataclass(frozen=True)
class Glance:
    """One layer's attention as probe tokens see it, which the model read behind the context.

    Attributes:
        queries: ``[kv_heads, group, probes, head_dim]``, after RoPE.
        keys: ``[kv_heads, tokens + probes, head_dim]``, after RoPE, the probes' own at the end.
        visible: bool ``[probes, tokens + probes]``.
        scaling: what the model multiplies ``queries · keys`` with.
    """

    queries: Tensor
    keys: Tensor
    visible: Tensor
    scaling: float

    @property
    def tokens(self) -> int:
        """Tokens of context that the layer holds."""
        return self.keys.shape[1] - self.queries.shape[2]


class Scorer(ABC):
    """Base of all scorers: frozen dataclasses whose fields are their parameters."""

    name: ClassVar[str]

    @abstractmethod
    def score(self, glance: Glance) -> Tensor:
        """Salience of one layer's tokens, ``[kv_heads, tokens]``, at least 0, in any unit."""
