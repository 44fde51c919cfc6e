"""Rotations that spread a row's energy evenly, so that one scale fits all of its numbers.

``n = m · 2**k`` with odd ``m``: a Walsh-Hadamard transform over the power of two and a DCT over the
rest, both orthonormal, so every head dim works (80 = 5 · 16, 96 = 3 · 32). Rotating before scalar
quantization is due to QuIP# (arXiv:2402.04396) and, for caches, RotateKV (arXiv:2501.16383).
"""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor


def rotate(rows: Tensor) -> Tensor:
    """Rotate float32 ``[..., n]``."""
    return _hadamard(_mix(rows, inverse=False))


def unrotate(rows: Tensor) -> Tensor:
    """Undo `rotate`: the Hadamard part is its own inverse, the DCT is transposed."""
    return _mix(_hadamard(rows), inverse=True)


def power_of_two(n: int) -> int:
    """The largest power of two that divides ``n``."""
    return n & -n


def _hadamard(rows: Tensor) -> Tensor:
    """Butterflies over the last, contiguous power of two; unnormalised sums, then one scaling."""
    size = power_of_two(rows.shape[-1])
    x, step = rows, 1
    while step < size:
        pairs = x.reshape(*rows.shape[:-1], -1, 2, step)
        one, two = pairs[..., 0, :], pairs[..., 1, :]
        x = torch.stack([one + two, one - two], dim=-2).flatten(-3)
        step *= 2
    return x * (1 / math.sqrt(size))


def _mix(rows: Tensor, inverse: bool) -> Tensor:
    odd = rows.shape[-1] // power_of_two(rows.shape[-1])
    if odd == 1:
        return rows
    matrix = _dct(odd).to(rows.device)
    parts = rows.reshape(*rows.shape[:-1], odd, -1)
    mixed: Tensor = (matrix.T if inverse else matrix) @ parts
    return mixed.flatten(-2)


@cache
def _dct(n: int) -> Tensor:
    """Orthonormal DCT-II, ``[n, n]``."""
    k, i = torch.arange(n, dtype=torch.float64)[:, None], torch.arange(n, dtype=torch.float64)
    matrix = torch.cos(math.pi * k * (i + 0.5) / n) * math.sqrt(2 / n)
    matrix[0] /= math.sqrt(2)
    return matrix.float()
