"""Turn pairs of numbers, in Numba: rotary positions of rows, in place and in one pass."""

from __future__ import annotations

from typing import Any

import numpy as np

from .compiling import kernel


@kernel
def turn(rows: Any, heads: Any, apart: Any, cos: Any, sin: Any) -> None:
    """Number ``i`` of a row with number ``i + dim / 2``.

    ``rows`` is flat: ``heads`` times ``[tokens, dim]`` float32, ``apart`` numbers apart; ``cos``
    and ``sin`` are ``[tokens, dim]``.
    """
    tokens, dim = cos.shape
    half = np.uint64(dim // 2)
    for head in range(heads):
        for t in range(tokens):
            at = np.uint64(head * apart + t * dim)
            for i in range(half):
                first, second = rows[at + i], rows[at + half + i]
                rows[at + i] = first * cos[t, i] - second * sin[t, i]
                rows[at + half + i] = second * cos[t, half + i] + first * sin[t, half + i]
