"""Coverage-guided fuzzing of load, verify, inspect and decode; see docs/fuzzing.md.

``python -m tests.attacks.fuzz_card --runs 1000000``. Needs ``pip install 'qkvshare[fuzz]'``.
A crash is any exception but a `QKVShareError`, more than a second of processor time, or more memory
than `TIMES` what is read and decoded.
"""

from __future__ import annotations

import argparse
import gc
import os
import shutil
import sys
import tempfile
import time
import tracemalloc
from collections import Counter
from importlib.metadata import entry_points
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .target import Target

SECONDS = 1.0
TIMES = 10
RESIDENT = 16 << 20  # bytes besides, of which the allocators' own pages are most
TRACED = 1 << 20
EACH = 16  # executions of which one is traced
CORPUS = Path(__file__).parent / "corpus"


class Hang(Exception):
    """An execution took more than `SECONDS` of processor time."""


class Blowup(Exception):
    """An execution took more memory than `TIMES` its input and output, and a constant."""


def main() -> None:
    """Fuzz; print what was run. What crashes is written to the working directory."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, required=True)
    parser.add_argument("--corpus", type=Path, help="where new inputs are kept")
    parser.add_argument("--length", type=int, default=8192, help="bytes of an input, at most")
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    folder = Path(tempfile.gettempdir())
    import atheris
    import torch

    torch.set_num_threads(1)
    kernels = Path(__file__).parents[2] / "src" / "qkvshare" / "kernels"
    compiled = [f"qkvshare.kernels.{file.stem}" for file in kernels.glob("*.py")]
    with atheris.instrument_imports(include=["qkvshare"], exclude=compiled):
        from .mutator import mutate
        from .target import BLOBS, FILE, FORGED, GOLDEN, KEY, PROFILE, RESEALED, SEALED, Target
    from qkvshare import registry
    from qkvshare.card import CacheCard

    # Other codecs are looked for on disk at every unknown name: some milliseconds.
    registry.entry_points = entry_points().select
    memory = Path("/dev/shm")
    # A name of its own for each user, used again: libFuzzer ends the process before it could go.
    scratch = (memory if memory.is_dir() else folder) / f"qkvshare-fuzz-{os.getuid()}"
    shutil.rmtree(scratch, ignore_errors=True)
    seeds = scratch / "seeds"
    seeds.mkdir(parents=True)
    target = Target(scratch / "card")
    for file in sorted(GOLDEN.glob("*.card")):
        card = CacheCard.load(file)
        first = card.manifest.segments[0].end
        thin = [card.without(card).to_bytes()]
        if len(card.manifest.segments) > 1:
            thin.append(card.without(card.head(first)).to_bytes())
        for number, content in enumerate([file.read_bytes(), *thin]):
            for kind in (FILE, FORGED, RESEALED):
                (seeds / f"{file.stem}.{number}.{kind}").write_bytes(bytes([kind]) + content)
        sealed = card.save(scratch / "sealed", key=KEY).read_bytes()
        (seeds / f"{file.stem}.sealed").write_bytes(bytes([SEALED]) + sealed)
    for change in range(64):
        (seeds / f"profile.{change}").write_bytes(bytes([PROFILE, change, *range(change, 64)]))
    # Every codec, number format and kind of head dim: each has machine code of its own.
    for number, (codec, dtype, dim, flags) in enumerate(
        product(range(5), range(3), (0, 5, 10, 11, 13, 14, 15, 16), (4, 20, 5))
    ):
        head = bytes([BLOBS, codec, dtype, flags, 20, 0, 1, dim, dim, 128])
        (seeds / f"blobs.{number}").write_bytes(head + bytes(range(64)))
    for file in (*seeds.iterdir(), *CORPUS.iterdir()):  # compiled here, not when time counts
        target(file.read_bytes())
    found = given.corpus or scratch / "found"
    found.mkdir(parents=True, exist_ok=True)
    arguments = [
        sys.argv[0], f"-runs={given.runs}", f"-max_len={given.length}", f"-seed={given.seed}",
        "-timeout=60", "-rss_limit_mb=4096", "-print_final_stats=1",
        *map(str, (found, seeds, CORPUS)),
    ]  # fmt: skip

    def change(data: bytes, most: int, seed: int) -> bytes:
        return mutate(data, most, seed, atheris.Mutate)

    atheris.Setup(arguments, Watched(target), custom_mutator=change)
    atheris.Fuzz()


class Watched:
    """A target with a watch on time and memory; counts what it ran."""

    def __init__(self, target: Target) -> None:
        """Nothing was run yet."""
        self.target, self.count = target, 0
        self.kinds: Counter[int] = Counter()
        self.slowest = self.largest = self.most_traced = 0.0
        self.begun = time.monotonic()

    def __call__(self, data: bytes) -> None:
        """Raises what the target raises, `Hang` or `Blowup`."""
        target, traced = self.target, self.count % EACH == 0
        if traced:
            tracemalloc.start()
        before = reset_peak()
        start = time.process_time()
        try:
            target(data)
        finally:
            seconds = time.process_time() - start
            grown = peak() - before
            most = 0
            if traced:
                most = tracemalloc.get_traced_memory()[1]
                tracemalloc.stop()
        allowed = TIMES * (target.bytes_in + target.bytes_out)
        self.count += 1
        self.kinds[data[0] % len(self.target.names) if data else 0] += 1
        self.slowest = max(self.slowest, seconds)
        self.largest = max(self.largest, grown - allowed)
        self.most_traced = max(self.most_traced, most - allowed)
        if seconds > SECONDS:
            raise Hang(f"{seconds:.2f} s")
        if grown > allowed + RESIDENT or most > allowed + TRACED:
            raise Blowup(f"{grown} bytes resident, {most} traced; {allowed} allowed and a constant")
        if self.count % 10_000 == 0:
            self.report()

    def report(self) -> None:
        """One line."""
        gc.collect()
        minutes = (time.monotonic() - self.begun) / 60
        kinds = ", ".join(
            f"{self.kinds[kind]:,} {name}" for kind, name in enumerate(self.target.names)
        )
        print(
            f"executions {self.count:,} ({kinds}) in {minutes:.1f} min; slowest "
            f"{1000 * self.slowest:.0f} ms; beyond {TIMES}x: resident {self.largest / 1024:.0f} "
            f"KiB, traced {self.most_traced / 1024:.0f} KiB",
            flush=True,
        )


def reset_peak() -> int:
    """Forget the largest resident size so far; the present one in bytes. Linux only."""
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def peak() -> int:
    """The largest resident size since then, in bytes."""
    with open("/proc/self/status", "rb") as file:
        at = file.read().split(b"VmHWM:")[1]
    return int(at.split()[0]) * 1024


if __name__ == "__main__":
    main()
