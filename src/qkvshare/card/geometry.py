"""What a model's layers keep, as a card's header says it.

Attention layers keep keys and values of each token: `Layer`. Other layers keep one sum of all
tokens, whatever their number: recurrent states, and the last inputs of a convolution; or one
compressed entry for each window of tokens. Such a state cannot be taken back to an earlier token,
so each segment of a card has a snapshot of it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

Count = Annotated[int, Meta(ge=0, le=2**31 - 1)]
Size = Annotated[int, Meta(ge=1, le=2**20)]
StateBits = Literal[4, 8]
LayerKind = Literal["full", "sliding", "indexer"]
StateKind = Literal["compressed", "conv", "open", "overlap", "recurrent"]
GROWING = ("compressed", "open")
_ITEM_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "int64": 8}
SCALE_BYTES = 2  # bfloat16


class Strict(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Unknown fields are errors: a reader that guesses is a reader that corrupts."""


class Layer(Strict, frozen=True):
    """Geometry of one attention layer.

    ``window``, in tokens, is of sliding layers only. An "indexer" layer has the keys by which the
    layer before it picks the tokens that it looks at, half of each as keys, half as values. The
    keys of a layer that is ``placed`` are stored as the model caches them by every codec: their
    positions cannot be taken out.
    """

    kind: LayerKind
    kv_heads: Size
    head_dim: Size
    v_head_dim: Size
    window: Annotated[int, Meta(ge=2, le=2**31 - 1)] | None = None
    placed: bool = False


class StateTensor(Strict, frozen=True):
    """One tensor of state that is not one for each token.

    ``layer`` counts all layers of the model. A layer may keep several tensors of a kind, which
    ``index`` counts. ``shape`` is that of one sequence.

    A "compressed" state has one entry for ``every`` so many tokens, and an "open" one has one for
    each token since the last of those. ``shape`` is that of one entry then; see `after`. An
    "overlap" is what the next entry needs of the tokens of the last one, zeros before there is one.
    """

    layer: Count
    kind: StateKind
    index: Count
    shape: Annotated[list[Size], Meta(min_length=1, max_length=8)]
    dtype: Literal["float32", "bfloat16", "float16", "int64"]
    every: Annotated[int, Meta(ge=2, le=2**20)] | None = None

    def after(self, tokens: int) -> StateTensor:
        """As it is after ``tokens``: of a shape that is known."""
        if self.every is None:
            return self
        full, open_ = divmod(tokens, self.every)
        shape = [full if self.kind == "compressed" else open_, *self.shape]
        return msgspec.structs.replace(self, shape=shape, every=None)

    @property
    def numbers(self) -> int:
        """How many numbers it has."""
        return math.prod(self.shape)

    @property
    def rows(self) -> int:
        """Runs of numbers along the last dimension."""
        return self.numbers // self.shape[-1]

    def coded(self, bits: int | None) -> bool:
        """Whether it is rounded to ``bits`` per number and a scale per row; otherwise its bytes
        are as they are. States of other kinds are small, and never rounded."""
        rounded = self.kind in ("compressed", "recurrent")
        return bits is not None and rounded and self.dtype != "int64"

    def nbytes(self, bits: int | None) -> int:
        """Encoded bytes with ``bits`` per number, see `coded`."""
        if bits is None or not self.coded(bits):
            return self.numbers * _ITEM_BYTES[self.dtype]
        return SCALE_BYTES * self.rows + -(-bits * self.numbers // 8)


def state_nbytes(states: Sequence[StateTensor], bits: int | None) -> int:
    """Bytes of a snapshot of ``states``, whose shapes are known, see `StateTensor.after`."""
    return sum(state.nbytes(bits) for state in states)
