"""Codecs whose rows have widths of their own, and allocators, which choose these widths.

A *row* is what one token has in one KV head of one layer, ``head_dim`` numbers, once for keys and
once for values: the smallest thing that bits are given to.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..card.digest import Bytes, TokenIds
from ..scoring import Scorer
from .base import Codec
from .layers import LayerKV, Shape

# The first tokens of a context are attention sinks: few, always looked at, and far from the rest.
SINKS = 4


@dataclass(frozen=True)
class LayerBits:
    """Bits per number for one layer's rows: ``keys`` and ``values``, uint8 ``[kv_heads, tokens]``.

    Every entry is one of the codec's `Tiered.tiers`.
    """

    keys: Tensor
    values: Tensor


BitMap = Sequence[LayerBits]


@dataclass(frozen=True)
class Energy:
    """Mean square of what a codec quantizes, float32 ``[kv_heads, tokens]``, per layer.

    With quantization error proportional to it, this is a row's share of the distortion.
    """

    keys: Tensor
    values: Tensor


class Tiered(Codec):
    """Base of codecs whose rows have widths of their own: `capture` allocates bits row by row.

    Attributes:
        tiers: bits per number that a row can have, ascending.
        distortion: the mean squared error of each tier, as a share of the row's energy.
        scorer: tells which tokens later queries look at; None for capture's default.
        allocator: turns salience and a number of bits into a bit map; None for capture's default.
    """

    tiers: ClassVar[tuple[int, ...]]
    distortion: ClassVar[tuple[float, ...]]
    # Codecs that let their users choose make them `ENCODER_ONLY` fields.
    scorer: Scorer | None = None
    allocator: Allocator | None = None

    @abstractmethod
    def encode(self, layers: Iterable[LayerKV], bits: BitMap | None = None) -> Iterator[Bytes]:
        """As `Codec.encode`, with each row's width. Raises `CodecError` without ``bits``."""

    @abstractmethod
    def energies(self, layers: Iterable[LayerKV]) -> list[Energy]:
        """Energies of each layer's rows."""

    @abstractmethod
    def row_bits(self, dim: int, bits: int) -> int:
        """Size of a row of ``dim`` numbers at ``bits`` bits, in bits."""

    @abstractmethod
    def overhead(self, shape: Shape) -> int:
        """Bytes of a layer whose rows all have 0 bits."""


@dataclass(frozen=True)
class Demand:
    """The rows to allocate bits to, layer by layer.

    Attributes:
        codec: what will encode the rows.
        shapes: geometry of each layer.
        energy: of each layer's rows, from `Tiered.energies`.
        salience: how much later queries look at each row, ``[kv_heads, tokens]`` a layer with mean
            1; None where no scorer was asked.
        sinks: how many of the first tokens get the widest tier.
        sensitivity: Fisher information of each layer's heads, ``[2 (keys, values), kv_heads]``;
            None for allocators that do without.
        model: read the context; for allocators that let it read again.
        ids: of the context, whose last tokens the layers hold: those before them are a parent's.
    """

    codec: Tiered
    shapes: Sequence[Shape]
    energy: Sequence[Energy]
    salience: Sequence[Tensor] | None
    sinks: int
    sensitivity: Sequence[Tensor] | None = None
    model: Any = None
    ids: TokenIds | None = None

    def costs(self) -> Tensor:
        """Bits of a row in every tier, ``[layers, 2 (keys, values), tiers]``, int64."""
        size, tiers = self.codec.row_bits, self.codec.tiers
        return torch.tensor(
            [
                [[size(dim, bits) for bits in tiers] for dim in (at.head_dim, at.v_head_dim)]
                for at in self.shapes
            ]
        )


class Allocator(ABC):
    """Base of all allocators: frozen dataclasses whose fields are their parameters."""

    name: ClassVar[str]

    @property
    def uses_salience(self) -> bool:
        """Whether `allocate` looks at `Demand.salience`: scoring costs a forward pass."""
        return False

    @property
    def uses_sensitivity(self) -> bool:
        """Whether `allocate` looks at `Demand.sensitivity`."""
        return False

    @abstractmethod
    def allocate(self, demand: Demand, budget: int) -> BitMap:
        """Spend at most ``budget`` bits on codes. Raises `BudgetError`."""
