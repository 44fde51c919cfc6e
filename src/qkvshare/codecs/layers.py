"""What codecs encode: one layer's keys and values of a run of tokens, and how large they are."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from ..card import Layer
from ..card.errors import CardFormatError
from ..kernels.rotation import rotate_pairs


@dataclass(frozen=True)
class Shape:
    """Geometry of one layer's keys and values in one segment."""

    kv_heads: int
    tokens: int
    head_dim: int
    v_head_dim: int

    @classmethod
    def of(cls, layer: Layer, tokens: int) -> Shape:
        """Shape of ``tokens`` cached tokens in ``layer``."""
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
        """Cosines and sines ``[tokens, head_dim / 2]`` by which a codec rotates the keys.

        Only codecs with `Codec.rotates` use them: before they encode, or after they decode. None
        means that the keys stay as they are.
        """
        return None

    @property
    def shape(self) -> Shape:
        """Its geometry."""
        heads, tokens, dim = self.keys.shape
        return Shape(heads, tokens, dim, self.values.shape[2])


Into = TypeVar("Into", bound=LayerKV)


@dataclass(frozen=True)
class RotatedKV(LayerKV):
    """Keys after RoPE, and the ``angles`` that take them back to before RoPE (or forth)."""

    angles: tuple[Tensor, Tensor] | None = None


def before_rope(layer: LayerKV) -> LayerKV:
    """The layer with its keys before RoPE: a float32 copy, if they have to be rotated back."""
    if layer.angles is None:
        return layer
    return LayerKV(rotate_pairs(layer.keys.float(), *layer.angles), layer.values)


def empty(shapes: Iterable[Shape], dtype: torch.dtype) -> Iterator[LayerKV]:
    """Memory for `Codec.decode`, layer by layer. Raises `CardFormatError` where there is none."""
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
