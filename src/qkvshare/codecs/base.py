"""What a codec is: keys and values of a run of tokens to bytes, layer by layer, and back."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import ClassVar, Self, TypeVar

import torch
from torch import Tensor

from ..card import Codec as CodecRecord
from ..card import Layer
from ..card.digest import Bytes
from ..card.errors import CardFormatError
from ..kernels.rotation import turned
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

    @property
    def angles(self) -> tuple[Tensor, Tensor] | None:
        """Cosines and sines ``[tokens, head_dim / 2]`` to turn keys by, for codecs that do so, see
        `Codec.turns`: before they are encoded, or after they are decoded. None where they stay as
        they are."""
        return None

    @property
    def shape(self) -> Shape:
        """Its geometry."""
        heads, tokens, dim = self.keys.shape
        return Shape(heads, tokens, dim, self.values.shape[2])


@dataclass(frozen=True)
class Turned(LayerKV):
    """Keys that ``angles`` take back to before RoPE."""

    angles: tuple[Tensor, Tensor] | None = None


def upright(layer: LayerKV) -> LayerKV:
    """With keys before RoPE; a copy, in float32, where they are turned."""
    if layer.angles is None:
        return layer
    return LayerKV(turned(layer.keys.float(), *layer.angles), layer.values)


Into = TypeVar("Into", bound=LayerKV)


def leave(layer: LayerKV) -> None:
    """Nothing more is done to it."""


class Codec(ABC):
    """Base of all codecs: subclasses are frozen dataclasses whose fields are their parameters.

    ``encode`` and ``decode`` are generators over the layers in order, so that memory stays at a few
    layers and a codec may predict a layer from those before it.
    """

    name: ClassVar[str]
    version: ClassVar[int] = 1
    # Whether keys arrive un-rotated (before RoPE, better statistics) or as the cache holds them.
    pre_rope: ClassVar[bool] = True
    # Whether keys are turned by `LayerKV.angles` on the way.
    turns: ClassVar[bool] = False
    # Whether a layer can be decoded without those before it.
    independent: ClassVar[bool] = True
    # Bits per number that a row can have, ascending, and the mean squared error of each as a share
    # of the row's energy; empty for codecs that treat all rows alike and take no bit map.
    tiers: ClassVar[tuple[int, ...]] = ()
    distortion: ClassVar[tuple[float, ...]] = ()

    @abstractmethod
    def encode(self, layers: Iterable[LayerKV], bits: BitMap | None = None) -> Iterator[Bytes]:
        """Yield each layer's bytes, uint8 ``[bytes]``; ``bits`` for codecs with `tiers`.

        A list of ``layers`` may be encoded in one go.

        Raises `CodecError`.
        """

    @abstractmethod
    def decode(
        self, blobs: Iterable[Bytes], into: Iterable[Into], then: Callable[[Into], None] = leave
    ) -> Iterator[Into]:
        """Decode layer after layer into ``into`` and yield it.

        Raises `CardError`, also for numbers that are not finite, see `finite`.

        ``into`` has a layer's shape and number format; its tokens' rows may lie anywhere, such as
        in the middle of a longer cache, as long as a row's numbers and a head's rows are one behind
        the other. It is taken a few layers ahead, a list as far as is useful. ``then`` is called
        with each layer once it is decoded, on the thread that did so, and several may be at work.
        """

    @classmethod
    def decodes_on(cls, device: torch.device, shape: Shape) -> bool:
        """Whether ``into`` may be on ``device``; it may always be on the CPU."""
        return device.type == "cpu"

    def decode_layer(self, blob: Bytes, layer: LayerKV) -> None:
        """Decode one layer into ``layer``, where layers are `independent`. Raises `CardError`."""
        for _ in self.decode([blob], [layer]):
            pass

    def check(self, blobs: Iterable[Bytes], shapes: Iterable[Shape], dtype: torch.dtype) -> None:
        """Look whether ``blobs`` of all layers stand for numbers of ``dtype``, and keep none.

        Raises as `decode`, which is the way where there is none that is shorter.
        """
        for _ in self.decode(blobs, empty(shapes, dtype)):
            pass

    @abstractmethod
    def parts(self, shape: Shape, nbytes: int) -> dict[str, int]:
        """Split a layer's ``nbytes`` bytes by kind: codes, scales, maps."""

    def energies(self, layers: Iterable[LayerKV]) -> list[Energy]:
        """Energies of each layer's rows; for codecs with `tiers`."""
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


def empty(shapes: Iterable[Shape], dtype: torch.dtype) -> Iterator[LayerKV]:
    """Memory for `Codec.decode`, a layer at a time. Raises `CardFormatError` for too much."""
    for shape in shapes:
        try:
            # Nothing is written before a codec has compared the shape with the bytes there are.
            keys, values = (torch.empty(of, dtype=dtype) for of in (shape.keys, shape.values))
        except RuntimeError as error:
            raise CardFormatError(
                f"there is no memory for a layer's bytes, its shape needs too many: {shape}. "
                "The card is damaged or was assembled by hand."
            ) from error
        yield LayerKV(keys, values)


def require_bytes(blob: Bytes, expected: int, codec: Codec) -> None:
    """Refuse a blob of the wrong size before anything is allocated for it."""
    if blob.nbytes != expected:
        raise CardFormatError(
            f"a layer encoded by {codec.name!r} has {blob.nbytes} bytes, its shape needs "
            f"{expected}. The card is damaged or was assembled by hand."
        )
