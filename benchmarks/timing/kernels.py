"""The row kernels against the floor: filling, and copying, as many bytes as they write or read.

A run makes (or takes) the keys and values of a whole cache, part by part. What is written has its
memory already, the same for the kernel, the fill and the copy, which take turns, so that a busy
machine slows all alike. With several threads each has a share of the parts, and does all of it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from qkvshare.kernels.decode import decode_parts
from qkvshare.kernels.encode import Source, encode
from qkvshare.kernels.levels import TIERS
from qkvshare.kernels.parts import Part
from qkvshare.kernels.reference import eights

MIXED = 0  # in place of a width: rows of all widths, in random order


@dataclass(frozen=True)
class Geometry:
    """A cache: ``2 · layers`` parts of ``[kv_heads, tokens, head_dim]``."""

    layers: int = 30
    kv_heads: int = 3
    tokens: int = 4096
    head_dim: int = 64

    @property
    def rows(self) -> int:
        """Rows of one part."""
        return self.kv_heads * self.tokens


@dataclass(frozen=True)
class KernelTiming:
    """Milliseconds of each round: the kernel, a fill and a copy of ``nbytes``."""

    kernel: str
    bits: int
    dtype: torch.dtype
    threads: int
    nbytes: int
    rounds: list[tuple[float, float, float]]


def measure_kernels(
    geometry: Geometry, widths: Sequence[int], threads: Sequence[int], rounds: int
) -> Iterator[KernelTiming]:
    """Decoding into float32 and bfloat16, then encoding, for every width on as many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # of torch's own; ours have a share each
    try:
        for count in threads:
            for bits in widths:
                info, codes = _encoded(geometry, bits)
                decode = _decoder(geometry, info, codes)
                for dtype in (torch.float32, torch.bfloat16):
                    yield _time("decode", bits, dtype, count, geometry, decode, rounds)
                encoder = _encoder(geometry, info, len(codes))
                yield _time("encode", bits, torch.float32, count, geometry, encoder, rounds)
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


def _decoder(geometry: Geometry, info: Tensor, codes: Tensor) -> Callable[[list[Tensor]], object]:
    """In one call, as a card's layers are."""
    scales = torch.ones(32)
    mean = torch.zeros(geometry.kv_heads, geometry.head_dim)
    return lambda outs: decode_parts([Part(codes, info, scales, out, mean) for out in outs])


def _encoder(geometry: Geometry, info: Tensor, nbytes: int) -> Callable[[list[Tensor]], object]:
    rows = torch.randn(geometry.kv_heads, geometry.tokens, geometry.head_dim)
    widths = torch.tensor(TIERS, dtype=torch.uint8)[info.int() & 7]
    out = np.empty(2 + len(info) + nbytes, np.uint8)
    source = Source(rows, None, None, out, widths)
    return lambda outs: encode([source] * len(outs))


def _time(
    kernel: str,
    bits: int,
    dtype: torch.dtype,
    threads: int,
    geometry: Geometry,
    function: Callable[[list[Tensor]], object],
    rounds: int,
) -> KernelTiming:
    shape = geometry.kv_heads, geometry.tokens, geometry.head_dim
    source = torch.ones(shape, dtype=dtype)
    ways: tuple[Callable[[list[Tensor]], object], ...] = (
        function,
        lambda outs: [out.fill_(1.0) for out in outs],
        lambda outs: [out.copy_(source) for out in outs],
    )
    parts = [source.clone() for _ in range(2 * geometry.layers)]
    found = []
    with ThreadPoolExecutor(threads) as pool:
        for number in range(rounds + 1):
            times = []
            for way in ways:
                start = time.perf_counter()
                list(pool.map(way, [parts[n::threads] for n in range(threads)]))
                times.append(1000 * (time.perf_counter() - start))
            if number:  # the first warms up
                found.append((times[0], times[1], times[2]))
    nbytes = len(parts) * source.nbytes
    return KernelTiming(kernel, bits, dtype, threads, nbytes, found)
