"""``packed`` encoded by torch: on a GPU, and for rows that no kernel takes."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..kernels.levels import LOWEST, OCTAVE, TIERS, UNIT, levels
from ..kernels.reference import encode_rows
from ..kernels.rotation import power_of_two, rotate
from .layers import LayerKV, before_rope
from .packed_layout import MEAN_TOKENS, units
from .tiered import Energy, LayerBits


def encode(layer: LayerKV, widths: LayerBits) -> list[Tensor]:
    """A layer's bytes, in parts."""
    parts = _encode_keys(before_rope(layer).keys, widths.keys)
    return [*parts, *encode_part(layer.values.float(), widths.values)]


def energy(layer: LayerKV) -> Energy:
    """As `Packed.energies`."""
    keys = before_rope(layer).keys.float()
    if keys.shape[1] >= MEAN_TOKENS:
        keys = keys - mean_of(keys)[0]
    return Energy(keys.square().mean(-1), layer.values.float().square().mean(-1))


def mean_of(keys: Tensor) -> tuple[Tensor, Tensor]:
    """The mean ``[kv_heads, 1, head_dim]`` as the decoder will see it, and its bytes.

    Eight bits are enough: what is subtracted is exactly what is added again.
    """
    mean = keys.mean(1, dtype=torch.float64).float()
    step = (mean.abs().amax(-1, keepdim=True) / 127).clamp(min=1e-30)
    codes = (mean / step).round().to(torch.int8)
    blob = torch.cat(
        [step.contiguous().view(torch.uint8).flatten(), codes.view(torch.uint8).flatten()]
    )
    return (codes.float() * step)[:, None], blob


def _encode_keys(keys: Tensor, bits: Tensor) -> list[Tensor]:
    """Mean and rows; of a few tokens no mean."""
    rows = keys.float()
    if rows.shape[1] < MEAN_TOKENS:
        return encode_part(rows, bits)
    mean, blob = mean_of(rows)
    # A copy made on the way can be used up; the caller's numbers cannot.
    rows = rows - mean if rows is keys else rows.sub_(mean)
    return [blob, *encode_part(rows, bits)]


def encode_part(part: Tensor, bits: Tensor) -> list[Tensor]:
    """Encode ``[kv_heads, tokens, dim]``: exponent, one byte a row, codes tier after tier."""
    rows = part.flatten(0, 1)
    widths = bits.flatten().to(rows.device)
    rms = torch.linalg.vector_norm(rows, dim=-1) / math.sqrt(rows.shape[1])
    # Eight bits are spent on rows that must not be clipped.
    wide = widths == 8
    root, chosen = math.sqrt(power_of_two(rows.shape[1])), wide.nonzero()[:, 0]
    peak = rotate(rows[chosen]).abs().amax(-1) * (UNIT / root / levels(8)[-1].item())
    rms[chosen] = torch.maximum(rms[chosen], peak)
    exact = torch.log2(rms.clamp(min=2.0 ** (LOWEST / OCTAVE))) * OCTAVE
    exponent = torch.where(wide, exact.ceil(), exact.round()).to(torch.int32)
    top = int(exponent.max())
    scale = (exponent - (top - 31)).clamp(min=0)

    tier = torch.bucketize(widths, torch.tensor(TIERS, device=rows.device))
    info = (tier | scale << 3).to(torch.uint8)
    head = torch.tensor([top], dtype=torch.int16).view(torch.uint8)
    inverse = torch.from_numpy(_inverse(top, rows.shape[1])).to(rows.device)
    return [head.to(rows.device), info, encode_rows(rows, info, inverse)]


@lru_cache(maxsize=4096)
def _inverse(top: int, dim: int) -> npt.NDArray[np.float32]:
    """What rows of ``dim`` numbers are multiplied with to be in units of levels, ``[32]``."""
    root = math.sqrt(power_of_two(dim))
    return np.array([UNIT / root / unit for unit in units(top)], np.float32)
