"""What a codec is: keys and values of a run of tokens to bytes, layer by layer, and back."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor

from ..card import Codec as CodecRecord
from ..card import Layer
from ..card.digest import Bytes
from ..card.errors import CardFormatError
from .bits import BitMap, Energy


@dataclass(frozen=True)
class Shape:
    """Geometry of one layer's keys and values in one segment."""

    kv_heads: int
    tokens: int
    head_dim: int
    v_head_dim: int

    @classmethod
    def of(cls, layer: Layer, tokens: int) -> Shape:
        """Shape of ``tokens`` held tokens in ``layer``."""
        return cls(layer.kv_heads, tokens, layer.head_dim, layer.v_head_dim)

    @property
    def keys(self) -> tuple[int, int, int]:
        """``[kv_heads, tokens, head_dim]``."""
        return self.kv_heads, self.tokens, self.head_dim

    @property
    def values(self) -> tuple[int, int, int]:
        """``[kv_heads, tokens, v_head_dim]``."""
        return self.kv_heads, self.tokens, self.v_head_dim


@dataclass(frozen=True)
class LayerKV:
    """One layer's keys ``[kv_heads, tokens, head_dim]`` and values ``[.., v_head_dim]``."""

    keys: Tensor
    values: Tensor


class Codec(ABC):
    """Base of all codecs: subclasses are frozen dataclasses whose fields are their parameters.

    ``encode`` and ``decode`` are generators over the layers in order, so that memory stays at a few
    layers and a codec may predict a layer from those before it.
    """

    name: ClassVar[str]
    version: ClassVar[int] = 1
    # Whether keys arrive un-rotated (before RoPE, better statistics) or as the cache holds them.
    pre_rope: ClassVar[bool] = True
    # Bits per number that a row can have, ascending, and the mean squared error of each as a share
    # of the row's energy; empty for codecs that treat all rows alike and take no bit map.
    tiers: ClassVar[tuple[int, ...]] = ()
    distortion: ClassVar[tuple[float, ...]] = ()

    @abstractmethod
    def encode(self, layers: Iterable[LayerKV], bits: BitMap | None = None) -> Iterator[Bytes]:
        """Yield each layer's bytes, uint8 ``[bytes]``; ``bits`` for codecs with `tiers`.

        Raises `CodecError`.
        """

    @abstractmethod
    def decode(
        self,
        blobs: Iterable[Bytes],
        shapes: Sequence[Shape],
        dtype: torch.dtype,
        spare: int = 0,
    ) -> Iterator[LayerKV]:
        """Yield each layer in ``dtype`` on the CPU, in memory of its own. Raises `CardError`.

        With ``spare`` keys and values are views ``[:, :tokens]`` of tensors with so many tokens
        more: who goes on from them need not copy them. See `roomy`.
        """

    @abstractmethod
    def parts(self, shape: Shape, nbytes: int) -> dict[str, int]:
        """Split a layer's ``nbytes`` bytes by kind: codes, scales, maps."""

    def energy(self, layer: LayerKV) -> Energy:
        """Energies of a layer's rows; for codecs with `tiers`."""
        raise NotImplementedError

    def row_bits(self, dim: int, bits: int) -> int:
        """Size of a row of ``dim`` numbers at ``bits`` bits, in bits; for codecs with `tiers`."""
        raise NotImplementedError

    def overhead(self, shape: Shape) -> int:
        """Bytes of a layer whose rows all have 0 bits; for codecs with `tiers`."""
        raise NotImplementedError

    def level_bytes(self, blob: Bytes, shape: Shape) -> list[int]:
        """Bytes of each refinement in a layer's ``blob``, which `drop` can do without."""
        return []

    def drop(self, blob: Bytes, shape: Shape, keep: int) -> Bytes:
        """``blob`` with its first ``keep`` refinements, without decoding."""
        raise NotImplementedError

    def narrower(self) -> Self | None:
        """The same codec at its next lower rate, or None at its lowest."""
        return None

    def record(self) -> CodecRecord:
        """What the manifest says of this codec; enough to decode."""
        # Only codecs that are dataclasses can be registered, see `codecs.find_codec`.
        parameters = dataclasses.asdict(self)  # type: ignore[call-overload]
        profile = parameters.pop("profile", None)
        return CodecRecord(self.name, self.version, parameters, profile)


def roomy(part: Tensor, dtype: torch.dtype, spare: int) -> Tensor:
    """A copy of ``part [kv_heads, tokens, dim]`` in ``dtype`` with room behind its tokens."""
    heads, tokens, dim = part.shape
    room = torch.empty(heads, tokens + spare, dim, dtype=dtype)
    room[:, :tokens] = part
    return room[:, :tokens]


def require_bytes(blob: Bytes, expected: int, codec: Codec) -> None:
    """Refuse a blob of the wrong size before anything is allocated for it."""
    if blob.nbytes != expected:
        raise CardFormatError(
            f"a layer encoded by {codec.name!r} has {blob.nbytes} bytes, its shape needs "
            f"{expected}. The card is damaged or was assembled by hand."
        )
