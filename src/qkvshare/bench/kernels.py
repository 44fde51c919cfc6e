"""The row kernels against the floor: filling, and copying, as many bytes as they write or read.

A run makes (or takes) the keys and values of a whole cache, layer by layer and all kept, as a
receiver does. Kernel, fill and copy take turns, so that a busy machine slows all alike.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..kernels.ahead import ahead
from ..kernels.levels import TIERS
from ..kernels.operators import decode_rows, encode_rows
from ..kernels.reference import eights

MIXED = 0  # in place of a width: rows of all widths, in random order


@dataclass(frozen=True)
class Geometry:
    """A cache: ``2 · layers`` parts of ``[kv_heads, tokens, head_dim]``."""

    layers: int = 30
    kv_heads: int = 3
    tokens: int = 1024
    head_dim: int = 64

    @property
    def rows(self) -> int:
        """Rows of one part."""
        return self.kv_heads * self.tokens


@dataclass(frozen=True)
class Timing:
    """Milliseconds of each round: the kernel, a fill and a copy of ``nbytes``."""

    kernel: str
    bits: int
    dtype: torch.dtype
    threads: int
    nbytes: int
    rounds: list[tuple[float, float, float]]


def measure_kernels(
    geometry: Geometry, widths: Sequence[int], threads: Sequence[int], rounds: int
) -> Iterator[Timing]:
    """Decoding into float32 and bfloat16, then encoding, for every width on as many threads."""
    before = torch.get_num_threads()
    try:
        for count in threads:
            torch.set_num_threads(count)
            for bits in widths:
                info, codes = _encoded(geometry, bits)
                for dtype in (torch.float32, torch.bfloat16):
                    decode = _decoder(geometry, info, codes, dtype)
                    yield _time("decode", bits, dtype, count, geometry, decode, rounds)
                encode = _encoder(geometry, info, len(codes))
                yield _time("encode", bits, torch.float32, count, geometry, encode, rounds)
    finally:
        torch.set_num_threads(before)


def _encoded(geometry: Geometry, bits: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    tier = torch.full((geometry.rows,), TIERS.index(bits))
    if bits == MIXED:
        tier = torch.randint(1, len(TIERS), (geometry.rows,), generator=generator)
    info = (tier | 31 << 3).to(torch.uint8)
    nbytes = int(np.array(TIERS)[tier].sum()) * eights(geometry.head_dim) // 8
    return info, torch.randint(0, 256, (nbytes,), generator=generator, dtype=torch.uint8)


def _decoder(geometry: Geometry, info: Tensor, codes: Tensor, dtype: torch.dtype) -> Any:
    scales = torch.ones(32)
    mean = torch.zeros(geometry.kv_heads, geometry.head_dim)

    def decode(_: int) -> Tensor:
        out = torch.empty(geometry.kv_heads, geometry.tokens, geometry.head_dim, dtype=dtype)
        decode_rows(codes, info, scales, mean, out)
        return out.flatten(0, 1)

    return decode


def _encoder(geometry: Geometry, info: Tensor, nbytes: int) -> Any:
    rows = torch.randn(geometry.rows, geometry.head_dim)
    return lambda _: encode_rows(rows, info, torch.full((32,), 32.0), nbytes)


def _time(
    kernel: str,
    bits: int,
    dtype: torch.dtype,
    threads: int,
    geometry: Geometry,
    function: Callable[[int], Tensor],
    rounds: int,
) -> Timing:
    shape = geometry.rows, geometry.head_dim
    source = torch.ones(shape, dtype=dtype)
    ways = (function, lambda _: torch.full(shape, 1.0, dtype=dtype), lambda _: source.clone())
    parts = range(2 * geometry.layers)
    found = []
    for number in range(rounds + 1):
        times = []
        for way in ways:
            start = time.perf_counter()
            kept = list(ahead(way, parts))
            times.append(1000 * (time.perf_counter() - start))
            del kept
        if number:  # the first warms up
            found.append((times[0], times[1], times[2]))
    nbytes = len(parts) * source.nbytes
    return Timing(kernel, bits, dtype, threads, nbytes, found)
