"""``uniform``: per-token asymmetric round-to-nearest, the baseline that others ship.

The scheme of transformers' ``QuantizedCache`` and of the Q4 prompt stores (for example "Agent
Memory Below the Prompt", arXiv:2603.04428): every token's keys, and values, are cut into groups of
64; each group stores its minimum and its step in float16, so ``bits`` bits cost ``bits + 0.5``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..card.digest import Bytes
from ..card.errors import CodecError
from ..kernels.reference import pack, unpack
from .base import Codec, LayerKV, Shape, require_bytes

GROUP = 64
BITS = (2, 3, 4, 8)


@dataclass(frozen=True)
class Uniform(Codec):
    """``bits`` (2, 3, 4 or 8) for every value, whatever the token."""

    bits: int = 8

    name = "uniform"
    pre_rope = False  # as the systems it stands for: keys as the cache holds them

    def __post_init__(self) -> None:
        """Refuse widths that nobody packs."""
        if self.bits not in BITS:
            raise CodecError(f"uniform has no width of {self.bits} bits; choose one of {BITS}.")

    def encode(self, layers: Iterable[LayerKV]) -> Iterator[Bytes]:
        """Bytes of a layer: keys' minima, steps, codes, then the same for values."""
        for layer in layers:
            yield np.concatenate([*self._quantize(layer.keys), *self._quantize(layer.values)])

    def decode(
        self, blobs: Iterable[Bytes], shapes: Sequence[Shape], dtype: torch.dtype
    ) -> Iterator[LayerKV]:
        """``minimum + code · step`` in float32, then ``dtype``."""
        for blob, shape in zip(blobs, shapes, strict=True):
            split = sum(self._sizes(shape.keys))
            require_bytes(blob, split + sum(self._sizes(shape.values)), self)
            yield LayerKV(
                self._dequantize(blob[:split], shape.keys).to(dtype),
                self._dequantize(blob[split:], shape.values).to(dtype),
            )

    def parts(self, shape: Shape, nbytes: int) -> dict[str, int]:
        """Minima and steps are scales."""
        scales = self._sizes(shape.keys)[0] + self._sizes(shape.values)[0]
        return {"codes": nbytes - scales, "scales": scales}

    def narrower(self) -> Self | None:
        """8 → 4 → 3 → 2 → None."""
        below = [bits for bits in BITS if bits < self.bits]
        return type(self)(max(below)) if below else None

    def _sizes(self, shape: tuple[int, int, int]) -> tuple[int, int]:
        """Bytes of scales and of codes for ``[kv_heads, tokens, dim]``."""
        groups = shape[1] * _groups(shape)
        return 4 * groups, groups * GROUP * self.bits // 8

    def _quantize(self, x: Tensor) -> tuple[Bytes, Bytes]:
        # [kv_heads, tokens, dim] -> [tokens, groups, 64], heads side by side; a last group that
        # is short repeats its last value, which changes neither its minimum nor its maximum
        rows = x.float().transpose(0, 1).flatten(1)
        padding = -rows.shape[1] % GROUP
        rows = F.pad(rows[None], (0, padding), mode="replicate")[0] if padding else rows
        groups = rows.view(len(rows), -1, GROUP)

        low = groups.amin(-1, keepdim=True).half()
        high = groups.amax(-1, keepdim=True)
        levels = 2**self.bits - 1
        # The step is taken from the rounded minimum, so rounding it does not shift the top.
        step = ((high - low.float()) / levels).clamp(min=1e-6).half()
        if not (torch.isfinite(low).all() and torch.isfinite(step).all()):
            raise CodecError(
                f"values up to {x.abs().max().item():g} do not fit the float16 scales of "
                "'uniform' (65504 at most). Use the codec 'raw' for this model."
            )
        codes = ((groups - low.float()) / step.float()).round().clamp(0, levels)
        scales = torch.stack([low, step]).flatten().view(torch.uint8)
        packed = pack(codes.to(torch.uint8), self.bits).flatten()
        return scales.cpu().numpy(), packed.cpu().numpy()

    def _dequantize(self, blob: Bytes, shape: tuple[int, int, int]) -> Tensor:
        heads, tokens, dim = shape
        split, _ = self._sizes(shape)
        data = torch.from_numpy(blob)
        scales = data[:split].clone().view(torch.float16).float()
        low, step = scales.view(2, tokens, _groups(shape), 1).unbind()
        packed = data[split:].view(tokens, _groups(shape), GROUP * self.bits // 8)
        groups = torch.addcmul(low, unpack(packed, self.bits).float(), step)
        return groups.flatten(1)[:, : heads * dim].reshape(tokens, heads, dim).transpose(0, 1)


def _groups(shape: tuple[int, int, int]) -> int:
    return -(-shape[0] * shape[2] // GROUP)
