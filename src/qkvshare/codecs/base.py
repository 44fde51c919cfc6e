"""What a codec is: it encodes keys and values of a run of tokens to bytes, and decodes them.

A codec is one frozen dataclass derived from `Codec`. What only some codecs do has a protocol of
its own: `Tiered` in `tiered`, and `Stepped`, `Trimmable` and `Attended` in `kinds`. Nothing outside
this folder asks for a concrete codec, so one from another package can do all that ours do.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from typing import ClassVar, Self

import numpy as np
import numpy.typing as npt
import torch

from ..card import CodecRecord
from ..card.digest import Bytes
from ..card.errors import CardFormatError
from .layers import Into, LayerKV, Shape, empty

BitCounts = npt.NDArray[np.float32]


def leave(layer: LayerKV) -> None:
    """Do nothing more to a decoded layer."""


# Metadata of a field that only tells the encoder what to do: the manifest does not record it.
ENCODER_ONLY = {"recorded": False}


def recorded(codec: Codec | type[Codec]) -> list[str]:
    """Names of the fields that a manifest records, the profile's included."""
    # Only codecs that are dataclasses can be registered, see `registry.find`.
    every = dataclasses.fields(codec)  # type: ignore[arg-type]
    return [field.name for field in every if field.metadata.get("recorded", True)]


class Codec(ABC):
    """Base of all codecs: frozen dataclasses whose fields are their parameters.

    Fields are numbers or text, and go into the manifest, which is all that `decode` knows. Two
    kinds of field do not: a field ``profile: str = ""`` is the digest of the calibration `Profile`
    that the codec needs, and stands beside the parameters; a field with `ENCODER_ONLY` stays here.

    ``encode`` and ``decode`` are generators over the layers in order, so that memory stays at a few
    layers and a codec may predict a layer from those before it.

    Attributes:
        name: what a manifest, a command line and the entry point call it.
        version: of its bytes; a decoder refuses any other.
        pre_rope: whether keys arrive before RoPE, where their statistics are better, or as cached.
        rotates: whether it takes keys as cached and rotates them itself, by `LayerKV.angles`.
        independent: whether a layer can be decoded without those before it.
        lossless: whether decoded numbers are the encoded ones, bit for bit.
        background: whether `decode` works on a thread of its own when ``into`` is a list on the
            CPU: then it has read and checked all bytes before it yields a layer.
    """

    name: ClassVar[str]
    version: ClassVar[int] = 1
    pre_rope: ClassVar[bool] = True
    rotates: ClassVar[bool] = False
    independent: ClassVar[bool] = True
    lossless: ClassVar[bool] = False
    background: ClassVar[bool] = False

    @abstractmethod
    def encode(self, layers: Iterable[LayerKV]) -> Iterator[Bytes]:
        """Yield each layer's bytes, uint8 ``[bytes]``. A list may be encoded in one go.

        Raises `CodecError` for numbers that the codec cannot encode.
        """

    @abstractmethod
    def decode(
        self, blobs: Iterable[Bytes], into: Iterable[Into], then: Callable[[Into], None] = leave
    ) -> Iterator[Into]:
        """Decode layer after layer into ``into`` and yield it.

        Args:
            blobs: each layer's bytes; they come from somebody else, so nothing in them is believed.
            into: targets with each layer's shape and dtype. A target's rows may lie anywhere, such
                as in the middle of a longer cache, as long as the numbers of a row and the rows of
                a head are contiguous. Targets are taken a few layers ahead, a list all at once.
            then: called with each decoded layer, on the thread that decoded it; several may be at
                work.

        Raises:
            CardError: the bytes do not fit the shapes, or stand for numbers that are not finite
                (see `finite`).
        """

    @classmethod
    def decodes_on(cls, device: torch.device, shape: Shape) -> bool:
        """Whether targets may be on ``device``. The CPU always works."""
        return device.type == "cpu"

    def check(self, blobs: Iterable[Bytes], shapes: Iterable[Shape], dtype: torch.dtype) -> None:
        """Check that ``blobs`` of all layers decode to finite numbers of ``dtype``; keep none.

        Raises as `decode`. A codec that can tell from less overrides this.
        """
        for _ in self.decode(blobs, empty(shapes, dtype)):
            pass

    def parts(self, shape: Shape, nbytes: int) -> dict[str, int]:
        """Split a layer's ``nbytes`` bytes by kind: ``codes``, ``scales``, ``maps``, or others."""
        return {"codes": nbytes}

    def token_bits(self, blob: Bytes, shape: Shape) -> tuple[BitCounts, BitCounts]:
        """How many bits of ``blob`` each token's keys, and values, take: two arrays ``[tokens]``.

        They add up to the blob. By default all tokens, and all numbers, are alike.
        """
        share = shape.v_head_dim / (shape.head_dim + shape.v_head_dim)
        values = blob.nbytes * share
        return alike(blob.nbytes - values, shape), alike(values, shape)

    def narrower(self) -> Self | None:
        """The same codec at its next lower rate; None at its lowest, or with a single rate."""
        return None

    def for_model(self, weights: str) -> Self:
        """The codec as it encodes for the model with these ``weights`` (their digest).

        A codec with a profile takes the one at hand. Raises `ProfileError`.
        """
        return self

    def record(self) -> CodecRecord:
        """What the manifest says of this codec; enough to decode."""
        parameters = {name: getattr(self, name) for name in recorded(self)}
        profile = parameters.pop("profile", None)
        return CodecRecord(self.name, self.version, parameters, profile)


def alike(nbytes: float, shape: Shape) -> BitCounts:
    """The bits of ``nbytes`` bytes, the same for each token."""
    return np.full(shape.tokens, 8 * nbytes / shape.tokens, np.float32)


def require_bytes(blob: Bytes, expected: int, codec: str) -> None:
    """Refuse a blob of the wrong size before anything is allocated for it."""
    if blob.nbytes != expected:
        raise damaged(codec, f"{blob.nbytes} bytes, its shape needs {expected}")


def damaged(codec: str, found: str) -> CardFormatError:
    """For a layer that no encoder wrote so."""
    return CardFormatError(
        f"a layer encoded by {codec!r} has {found}. The card is damaged or was assembled by hand."
    )
