"""What sealing costs a receiver: ``python -m tests.card.time_sealing [MB] [rounds]``.

Opens and verifies the same card plain and sealed, in alternating rounds, and prints medians.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from pathlib import Path

import msgspec
import numpy as np

from qkvshare import CacheCard
from qkvshare.card import Key
from qkvshare.card.container import blob_name, ids_name
from qkvshare.card.digest import digest_bytes, extend_chain

from ..cards import make_card

LAYERS, TOKENS = 30, 8192


def random_card(nbytes: int) -> CacheCard:
    """A card of so many random bytes in `LAYERS` layers, which nobody could decode."""
    generator = np.random.default_rng(0)
    blobs = [generator.integers(0, 256, nbytes // LAYERS, np.uint8) for _ in range(LAYERS)]
    ids = generator.integers(0, 50_000, TOKENS, np.int32)
    manifest = make_card(runs=(1,)).manifest
    (segment,) = manifest.segments
    segment = msgspec.structs.replace(
        segment,
        end=TOKENS,
        chain=extend_chain(segment.prefix, ids, None),
        blobs=[digest_bytes(blob) for blob in blobs],
        first=None,
    )
    layers = [manifest.layers[0]] * LAYERS
    manifest = msgspec.structs.replace(manifest, segments=[segment], layers=layers)
    return CacheCard(
        manifest, {ids_name(0): ids} | {blob_name(at, 0): blob for at, blob in enumerate(blobs)}
    )


def main(megabytes: float = 47, rounds: int = 15) -> None:
    key = Key.generate()
    with tempfile.TemporaryDirectory() as folder:
        card = random_card(int(megabytes * 1e6))
        ways = {
            "plain": (card.save(Path(folder) / "plain"), None),
            "sealed": (card.save(Path(folder) / "sealed", key=key), key),
        }
        took: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(rounds + 1):
            for name, (path, given) in ways.items():
                start = time.perf_counter()
                CacheCard.load(path, key=given).verified()
                took[name].append(1000 * (time.perf_counter() - start))
        for name, (path, _given) in ways.items():
            kept = took[name][1:]
            print(
                f"{name:>6}: {path.stat().st_size:,} bytes, load and verify "
                f"{statistics.median(kept):.1f} ms (from {min(kept):.1f} to {max(kept):.1f})"
            )


if __name__ == "__main__":
    main(*map(float, sys.argv[1:2]), *map(int, sys.argv[2:3]))
