"""What only some codecs do, besides `tiered`. A codec derives from each of these that it fulfils.

`Tiered` and `Stepped` say how `capture` meets a number of bits per value: row by row, or by one
step for all numbers. Any other codec encodes as it is, and is narrowed until the card fits.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from typing import Self

import numpy as np
import numpy.typing as npt
from torch import Tensor

from ..card.digest import Bytes
from ..kernels.attention import Piece
from ..scoring import Scorer
from .base import Codec
from .layers import LayerKV, Shape

Exponents = npt.NDArray[np.int32]


class Stepped(Codec):
    """One quantization step for the whole card, times ``2 ** (exponent / 4)`` for each token.

    Attributes:
        scorer: tells which tokens later queries look at; None for capture's default.
        step: the step is ``2 ** (step / 64)``; None lets capture fit it to the bytes asked for.
    """

    scorer: Scorer | None = None
    step: int | None

    @abstractmethod
    def encode(
        self, layers: Iterable[LayerKV], exponents: Sequence[Exponents] | None = None
    ) -> Iterator[Bytes]:
        """As `Codec.encode`, with ``exponents [tokens]`` of each layer; by default all 0."""

    @abstractmethod
    def at(self, step: int | None) -> Self:
        """The same codec with another step."""

    @property
    @abstractmethod
    def reference(self) -> int:
        """The step to use without a target, and to begin the search for another one at."""

    @property
    @abstractmethod
    def allocation(self) -> str:
        """What the manifest calls the rule of `exponents`."""

    @abstractmethod
    def exponents(self, salience: Tensor, sinks: int) -> Exponents:
        """Exponents ``[tokens]`` of one layer, from its ``salience [kv_heads, tokens]``.

        The first ``sinks`` tokens are attention sinks.
        """


class Trimmable(Codec):
    """Its layers end in refinements, which `trim` can drop without decoding.

    Attributes:
        refinements: how many a card that this codec writes has.
    """

    refinements: int

    @abstractmethod
    def level_bytes(self, blob: Bytes, shape: Shape) -> list[int]:
        """Bytes of each refinement in a layer's ``blob``."""

    @abstractmethod
    def drop(self, blob: Bytes, shape: Shape, keep: int) -> Bytes:
        """``blob`` with its first ``keep`` refinements."""


class Attended(Codec):
    """Attention can read its codes, so that a cache may keep codes instead of numbers."""

    @abstractmethod
    def codes(
        self, blob: Bytes, shape: Shape, angles: tuple[Tensor, Tensor] | None
    ) -> Piece | None:
        """What the attention kernel reads of one layer; None where no kernel fits its shape.

        ``angles`` rotate the keys to their positions; None leaves them as they are.
        """
