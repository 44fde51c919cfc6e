"""Rotations that spread a row's energy evenly, so that one scale fits all of its numbers.

``n = m · h`` with odd ``m`` and ``h`` a power of two: a Walsh-Hadamard transform over ``h`` and an
orthonormal DCT-II over ``m``, so every head dim works (80 = 5 · 16, 96 = 3 · 32). The Hadamard part
is not normalised: a rotated row is ``√h`` times as long. Every sum has one order, so that kernels
can give the same bits. Rotating before scalar quantization is due to QuIP# (arXiv:2402.04396) and,
for caches, RotateKV (arXiv:2501.16383).
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor


def power_of_two(n: int) -> int:
    """The largest power of two that divides ``n``."""
    return n & -n


def rotate(rows: Tensor) -> Tensor:
    """Rotate ``[rows, n]``: DCT, then Hadamard."""
    return hadamard(mix(rows, inverse=False))


def hadamard(rows: Tensor) -> Tensor:
    """Butterflies over the last, contiguous power of two, nearest neighbours first."""
    size = power_of_two(rows.shape[-1])
    x, step = rows, 1
    while step < size:
        pairs = x.reshape(*rows.shape[:-1], rows.shape[-1] // (2 * step), 2, step)
        one, two = pairs[..., 0, :], pairs[..., 1, :]
        x = torch.stack([one + two, one - two], dim=-2).flatten(-3)
        step *= 2
    return x


def mix(rows: Tensor, inverse: bool) -> Tensor:
    """DCT over the odd factor, or its transpose; float32."""
    odd = rows.shape[-1] // power_of_two(rows.shape[-1])
    if odd == 1:
        return rows
    matrix = torch.from_numpy(dct(odd)).to(rows.device)
    matrix = matrix.T if inverse else matrix
    parts = rows.reshape(*rows.shape[:-1], odd, power_of_two(rows.shape[-1]))
    out = matrix[:, :1] * parts[..., :1, :]
    for other in range(1, odd):
        out = out + matrix[:, other : other + 1] * parts[..., other : other + 1, :]
    return out.flatten(-2)


@cache
def dct(n: int) -> npt.NDArray[np.float32]:
    """Orthonormal DCT-II, ``[n, n]``."""
    k, i = np.arange(n)[:, None], np.arange(n)
    matrix = np.cos(math.pi * k * (i + 0.5) / n) * math.sqrt(2 / n)
    matrix[0] /= math.sqrt(2)
    return matrix.astype(np.float32)


def rotate_pairs(rows: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """``rows [heads, tokens, dim]`` by RoPE's angles ``[tokens, dim / 2]``: number ``i`` with
    number ``i + dim / 2``."""
    one, two = rows.chunk(2, -1)
    return torch.cat([one * cos - two * sin, two * cos + one * sin], -1)
