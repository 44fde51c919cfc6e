"""Sub-byte packing, element by element."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from qkvshare.kernels.reference import pack_planes, planes, unpack_planes


@given(
    bits=st.integers(1, 8), blocks=st.integers(0, 5), n=st.integers(1, 9), seed=st.integers(0, 999)
)
def test_planes_hold_every_stride_th_code(bits: int, blocks: int, n: int, seed: int) -> None:
    codes = np.random.default_rng(seed).integers(0, 2**bits, (blocks, 8 * n), dtype=np.uint8)
    packed = pack_planes(torch.from_numpy(codes), bits)
    assert packed.shape == (blocks, bits * n)
    assert torch.equal(unpack_planes(packed, bits), torch.from_numpy(codes))
    for block in range(blocks):
        at = low = 0
        for width in planes(bits):
            for i in range(8 * n):
                byte = int(packed[block, at + i % (n * width)])
                part = byte >> (i // (n * width) * width) & (2**width - 1)
                assert part == codes[block, i] >> low & (2**width - 1)
            at, low = at + n * width, low + width
