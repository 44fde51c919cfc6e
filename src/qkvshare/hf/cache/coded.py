"""Layers that keep a card's codes, so that the cache of a long context takes the card's bytes.

Attention `qkvshare` reads codes as they are, where there is a kernel. For all else a layer is
decoded each time that it is read, into memory that all layers share. Tokens after the card's are
kept as numbers, as in any other layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self, cast

import torch
from torch import Tensor

from ...card.digest import Bytes
from ...card.errors import UnsupportedModelError
from ...codecs import Attended, Codec, LayerKV, Shape
from ...kernels.attention import Codes, Piece, first_codes
from ..attention import NAME
from ..model.rotation import Rotation
from .buffers import Target
from .growing import STEP, FullLayer


@dataclass(frozen=True)
class CodedRun:
    """The bytes of one layer of a run, for tokens from ``start`` on, and their keys' rotation."""

    codec: Codec
    blob: Bytes
    start: int
    shape: Shape
    rotation: Rotation | None

    @cached_property
    def piece(self) -> Piece | None:
        """What attention reads; None where there is no kernel that does."""
        angles = None if self.rotation is None else self.rotation.angles
        if not isinstance(self.codec, Attended) or (self.rotation is not None and angles is None):
            return None
        return self.codec.codes(self.blob, self.shape, angles)

    def decode(self, buffer: LayerKV) -> None:
        """Decode to the first sequence of ``buffer [batch, kv_heads, tokens, dim]``."""
        at = slice(self.start, self.start + self.shape.tokens)
        here = LayerKV(buffer.keys[0, :, at], buffer.values[0, :, at])
        target = Target.of(here, self.shape, here.keys.dtype, self.rotation, type(self.codec))
        for _ in self.codec.decode([self.blob], [target], Target.settle):
            pass


@dataclass
class Scratch:
    """Memory for the numbers of one layer, which all coded layers of a cache share.

    Attributes:
        config: of the model; it names the attention function, which may change.
        buffer: ``[batch, kv_heads, tokens, dim]``.
        unread: the layer whose codes attention was given and has not read.
    """

    dtype: torch.dtype
    device: torch.device
    config: Any = None
    buffer: LayerKV | None = None
    unread: int | None = None

    def __deepcopy__(self, _: object) -> Self:
        """Numbers are decoded again."""
        return type(self)(self.dtype, self.device, self.config)

    @property
    def nbytes(self) -> int:
        """Of memory."""
        return 0 if self.buffer is None else self.buffer.keys.nbytes + self.buffer.values.nbytes

    def buffer_for(self, batch: int, shape: Shape, tokens: int) -> LayerKV:
        """A buffer for ``batch`` sequences of ``tokens``."""
        sizes = [(batch, shape.kv_heads, dim) for dim in (shape.head_dim, shape.v_head_dim)]
        old = self.buffer
        has = [] if old is None else [(*x.shape[:2], x.shape[3]) for x in (old.keys, old.values)]
        if old is None or has != sizes or old.keys.shape[2] < tokens:
            shapes = [(rows, heads, tokens + STEP, dim) for rows, heads, dim in sizes]
            with torch.inference_mode(False):  # so that it can be written outside of it, too
                parts = [torch.empty(at, dtype=self.dtype, device=self.device) for at in shapes]
            self.buffer = old = LayerKV(*parts)
        return old


class CodedLayer(FullLayer):  # type: ignore[no-untyped-call]
    """Full attention over a card's ``kept`` tokens, as codes, and those after them, as numbers."""

    def __init__(
        self, layer_idx: int, runs: Sequence[CodedRun], kept: int, scratch: Scratch
    ) -> None:
        """``runs`` follow each other from token 0."""
        super().__init__()
        self._layer_idx, self._runs, self.kept, self.scratch = layer_idx, tuple(runs), kept, scratch
        self._codes: Codes = ()
        shape = runs[0].shape
        self.dtype, self.device, self.is_initialized = scratch.dtype, scratch.device, True
        self.keys, self.values = (
            torch.empty(1, shape.kv_heads, 0, dim, dtype=self.dtype, device=self.device)
            for dim in (shape.head_dim, shape.v_head_dim)
        )

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """As `FullLayer.update`. What comes out is valid until another layer is read."""
        super().update(key_states, value_states, *args, **kwargs)
        if not self._runs:  # it was reset
            return self._new
        if not self._attention_reads_codes():
            return self.numbers()
        if self.scratch.unread is not None and self._layer_idx > 0:
            raise UnsupportedModelError(
                f"the attention of layer {self.scratch.unread} did not read the codes that it was "
                "given: the model does not call attention 'qkvshare' with what its cache returns. "
                "Use kv_format='model', or another attention function."
            )
        self.scratch.unread = self._layer_idx
        self._new[0].coded = self  # type: ignore[attr-defined]
        return self._new

    def _attention_reads_codes(self) -> bool:
        """Whether the attention function is ours, and has kernels."""
        ours = getattr(self.scratch.config, "_attn_implementation", None) == NAME
        plain = self.dtype == torch.float32 and self.device.type == "cpu"
        return ours and plain and all(run.piece for run in self._runs)

    def numbers(self) -> tuple[Tensor, Tensor]:
        """All keys and values ``[batch, kv_heads, tokens, dim]``, in the scratch memory."""
        self.scratch.unread = None
        keys, values = self._new
        batch, end = keys.shape[0], self.kept + keys.shape[2]
        coded = sum(run.shape.tokens for run in self._runs)
        buffer = self.scratch.buffer_for(batch, self._runs[0].shape, max(coded, end))
        for run in self._runs:
            run.decode(buffer)
        for part, new in ((buffer.keys, keys), (buffer.values, values)):
            part[1:, :, : self.kept] = part[:1, :, : self.kept]
            part[:, :, self.kept : end] = new
        return buffer.keys[:, :, :end], buffer.values[:, :, :end]

    def codes(self) -> Codes:
        """For attention: those of the tokens before the keys and values that are numbers."""
        self.scratch.unread = None
        if sum(used for _, used in self._codes) != self.kept:
            pieces = [piece for run in self._runs if (piece := run.piece) is not None]
            self._codes = first_codes(pieces, self.kept)
        return self._codes

    def plain(self) -> FullLayer:
        """A layer of the same tokens, all of them numbers and its own."""
        layer = FullLayer()
        if self.is_initialized:  # it was not reset
            layer.update(*(self.numbers() if self._runs else self._new))
        return layer

    @property
    def _new(self) -> tuple[Tensor, Tensor]:
        """Keys and values after the card's."""
        return cast(Tensor, self.keys), cast(Tensor, self.values)

    @property
    def nbytes(self) -> int:
        """Bytes of codes, and of the numbers behind them; without the scratch memory."""
        coded = sum(run.blob.nbytes for run in self._runs)
        return coded + sum(part.nbytes for part in self._new)

    def get_seq_length(self) -> int:
        """Tokens, coded or not."""
        return self.kept + (0 if self.keys is None else self.keys.shape[2])

    def crop(self, tokens_to_remove: int) -> None:
        """As ``DynamicLayer.crop``, and on into the codes, of which all stay."""
        if not self.is_initialized:
            return
        added = self._new[0].shape[2]
        if -tokens_to_remove > added:
            self.kept += tokens_to_remove + added
            tokens_to_remove = -added
        super().crop(tokens_to_remove)

    def reset(self) -> None:
        """Forget everything."""
        super().reset()
        self._runs, self.kept = (), 0
