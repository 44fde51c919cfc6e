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

    @abstractmethod
    def encode(self, layers: Iterable[LayerKV]) -> Iterator[Bytes]:
        """Yield each layer's bytes, uint8 ``[bytes]``. Raises `CodecError`."""

    @abstractmethod
    def decode(
        self, blobs: Iterable[Bytes], shapes: Sequence[Shape], dtype: torch.dtype
    ) -> Iterator[LayerKV]:
        """Yield each layer in ``dtype`` on the CPU, in memory of its own. Raises `CardError`."""

    @abstractmethod
    def parts(self, shape: Shape, nbytes: int) -> dict[str, int]:
        """Split a layer's ``nbytes`` bytes by kind: codes, scales, maps."""

    def narrower(self) -> Self | None:
        """The same codec at its next lower rate, or None at its lowest."""
        return None

    def record(self) -> CodecRecord:
        """What the manifest says of this codec; enough to decode."""
        # Only codecs that are dataclasses can be registered, see `codecs.find_codec`.
        parameters = dataclasses.asdict(self)  # type: ignore[call-overload]
        return CodecRecord(name=self.name, version=self.version, parameters=parameters)


def require_bytes(blob: Bytes, expected: int, codec: Codec) -> None:
    """Refuse a blob of the wrong size before anything is allocated for it."""
    if blob.nbytes != expected:
        raise CardFormatError(
            f"a layer encoded by {codec.name!r} has {blob.nbytes} bytes, its shape needs "
            f"{expected}. The card is damaged or was assembled by hand."
        )
