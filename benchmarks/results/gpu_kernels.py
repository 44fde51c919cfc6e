"""The kernels by themselves, for `gpu.py`: parity and bandwidth."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

Row = dict[str, Any]


@dataclass(frozen=True)
class Machine:
    """Bytes a second of memory and of the way to it, operations a second of matrices.

    ``memory`` counts what is read and what is written.
    """

    memory: float
    link: float
    matrices: float


@dataclass
class Bench:
    """All steps, on ``device``; ``tiny`` makes each as small as can be."""

    device: Any
    tiny: bool
    target: str
    rows: list[Row]

    def add(self, section: str, **found: object) -> None:
        """Keep what was found, whatever happens next."""
        from benchmarks.evals.results import write_rows

        self.rows.append({"section": section, **found})
        print(section, *(f"{key}={value}" for key, value in found.items()), file=sys.stderr)
        if self.target != "-":
            write_rows(self.target, self.rows)

    def time(self, work: Callable[[], object], rounds: int = 20) -> float:
        """Milliseconds, median; two rounds warm up."""
        from benchmarks.timing.clock import Clock

        clock, times = Clock(self.device), []
        before = 0 if self.tiny else 2
        for _ in range(1 if self.tiny else before + rounds):
            start = clock.now()
            work()
            times.append(clock.between(start, clock.now()))
        return statistics.median(times[before:])

    def kernels(self, work: Callable[[], object], rounds: int = 5) -> dict[str, float]:
        """Milliseconds of each kernel, without what commands them; none on a processor."""
        if self.device.type != "cuda":
            return {}
        import torch
        from torch.profiler import ProfilerActivity, profile

        with profile(activities=[ProfilerActivity.CUDA]) as seen:
            for _ in range(rounds):
                work()
            torch.cuda.synchronize()
        return {at.key: at.device_time_total / 1e3 / rounds for at in seen.key_averages()}

    def part(self, heads: int, tokens: int, dim: int, seed: int, bits: int = 0) -> Any:
        """A part of random codes; ``bits`` 0 mixes all widths."""
        import torch

        from qkvshare.kernels.levels import TIERS
        from qkvshare.kernels.parts import Part
        from qkvshare.kernels.reference import eights
        from qkvshare.kernels.rotation import power_of_two

        generator = torch.Generator().manual_seed(seed)
        tiers = torch.randint(1, 8, (heads * tokens,), generator=generator)
        tiers = tiers if bits == 0 else torch.full_like(tiers, TIERS.index(bits))
        scale = torch.randint(0, 32, tiers.shape, generator=generator)
        size = int(torch.tensor(TIERS)[tiers].sum()) * eights(dim) // 8
        codes = torch.randint(0, 256, (size,), dtype=torch.uint8, generator=generator)
        units = torch.exp2((torch.arange(32) - 24) / 3)
        info = (tiers | scale << 3).to(torch.uint8)
        scales = units / 256 / power_of_two(dim) ** 0.5
        codes, info, scales = (at.to(self.device) for at in (codes, info, scales))
        dtype = torch.float32 if self.tiny else torch.bfloat16
        numbers = torch.empty(heads, tokens, dim, dtype=dtype, device=self.device)
        return Part(codes, info, scales, numbers)


def parity(bench: Bench) -> None:
    """Numbers against the reference on the processor."""
    import torch

    from qkvshare.kernels import reference
    from qkvshare.kernels.cuda_decode import decode_parts

    for dim in (64,) if bench.tiny else (64, 128, 256):
        part = bench.part(2, 20 if bench.tiny else 3000, dim, dim)
        codes, info, scales = (at.cpu() for at in (part.codes, part.info, part.scales))
        for name in ("float32", "bfloat16", "float16"):
            out = torch.empty_like(part.numbers, dtype=getattr(torch, name))
            mean = torch.ones(2, dim, device=bench.device)
            decode_parts([replace(part, numbers=out, mean=mean)])
            back = reference.decode_rows(codes, info, scales, mean.cpu(), dim)
            exact = back.view(out.shape).to(out.dtype)
            bench.add(
                "parity",
                head_dim=dim,
                dtype=name,
                numbers_equal=float((out.cpu() == exact).float().mean()),
                largest_error=float((out.cpu().float() - exact.float()).abs().max()),
            )


def bandwidth(bench: Bench) -> Machine:
    """Of decoding, against copying as many bytes on the GPU; and the ceilings."""
    import torch

    from qkvshare.kernels.cuda_decode import decode_parts

    layers, tokens = (1, 40) if bench.tiny else (32, 8192)
    size = 1 << (16 if bench.tiny else 30)
    source = torch.empty(size, dtype=torch.uint8, device=bench.device)
    host, target = torch.empty(size, dtype=torch.uint8), torch.empty_like(source)
    host = host.pin_memory() if bench.device.type == "cuda" else host
    square = torch.randn(64 if bench.tiny else 8192, 64 if bench.tiny else 8192)
    square = square.to(bench.device, torch.bfloat16)
    machine = Machine(
        2e3 * size / bench.time(partial(target.copy_, source)),
        1e3 * size / bench.time(partial(target.copy_, host, non_blocking=True)),
        2e3 * len(square) ** 3 / bench.time(partial(torch.matmul, square, square)),
    )
    bench.add("ceilings", **vars(machine))
    del source, host, target, square
    for bits in (4,) if bench.tiny else (0, 2, 4, 8):
        one = bench.part(1 if bench.tiny else 8, tokens, 64 if bench.tiny else 128, 0, bits)
        cos = torch.ones(tokens, one.numbers.shape[2] // 2, device=bench.device)
        parts = []
        for number in range(2 * layers):  # keys and values
            angles = None if number % 2 else (cos, cos)
            given = one.codes.clone(), one.info.clone(), one.scales
            parts.append(type(one)(*given, torch.empty_like(one.numbers), None, angles))
        moved = sum(at.codes.nbytes + at.info.nbytes + at.numbers.nbytes for at in parts)
        for name, some in (("whole cache", parts), ("one layer", parts[:2])):
            share = moved * len(some) // len(parts)
            ms = bench.time(partial(decode_parts, some))
            bench.add(
                "bandwidth",
                of=name,
                bits=bits or "mixed",
                ms=ms,
                kernels_ms=bench.kernels(partial(decode_parts, some)),
                bytes=share,
                of_copy=1e3 * share / ms / machine.memory,
            )
    return machine
