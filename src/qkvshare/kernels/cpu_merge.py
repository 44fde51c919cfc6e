"""What is kept of the parts that `cpu_flash` takes a head's tokens in, and what it comes to."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba.extending import register_jitable

from .compiling import part
from .cpu_memory import array_at, float_at
from .cpu_softmax import LOWEST

LINE = 64  # bytes


@register_jitable
def kept_of(rows: Any, dim: Any) -> Any:
    """Numbers kept of a part: sums, largest scores, sums of weights; whole cache lines."""
    line = LINE // 4
    return (rows * (dim + 2) + line - 1) // line * line


@part
def merge(order: Any, floats: Any) -> None:
    """Parts in the proportion of their sums."""
    rows, heads = order.group * order.new, order.kv_heads * order.group
    each, size = kept_of(rows, order.dim), np.uint64(order.dim)
    for whole in range(order.units // order.parts):
        batch, head = whole // order.kv_heads, whole % order.kv_heads
        first = order.kept + 4 * whole * order.parts * each
        for r in range(rows):
            token = batch * order.new + r % order.new
            to = order.out + 4 * (token * heads + head * order.group + r // order.new) * order.dim
            out, total = array_at(to, order.dim, floats), np.float32(0)
            out[:] = 0
            known, peak = first + 4 * (rows * order.dim + r), LOWEST
            for p in range(order.parts):
                peak = max(peak, float_at(known + 4 * p * each))
            for p in range(order.parts):
                share = np.float32(math.exp(float_at(known + 4 * p * each) - peak))
                total += share * float_at(known + 4 * (p * each + rows))
                sums = array_at(first + 4 * (p * each + r * order.dim), order.dim, floats)
                for i in range(size):
                    out[i] += share * sums[i]
            for i in range(size):
                out[i] /= total
