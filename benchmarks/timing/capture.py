"""What capture costs beside the prefill that it contains: score, allocate, encode, write."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from qkvshare.hf.capture.capture import capture
from qkvshare.hf.capture.reading import read


@dataclass(frozen=True)
class CaptureTiming:
    """Milliseconds of each round: reading alone, and reading, making and writing a card."""

    context_tokens: int
    prefill: list[float]
    capture: list[float]


def measure_capture(
    model: Any, ids: Sequence[int], lengths: Sequence[int], budget: float, rounds: int
) -> Iterator[CaptureTiming]:
    """The first tokens of ``ids``, read and captured in turn; the first round warms up."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "card"
        for length in lengths:
            own = ids[:length]
            ways: tuple[Callable[[], Any], ...] = (
                partial(read, model, own),
                partial(_write, model, own, budget, path),
            )
            found: tuple[list[float], list[float]] = ([], [])
            for number in range(rounds + 1):
                for times, way in zip(found, ways, strict=True):
                    start = time.perf_counter()
                    way()
                    if number:
                        times.append(1000 * (time.perf_counter() - start))
            yield CaptureTiming(length, *found)


def _write(model: Any, ids: Sequence[int], budget: float, path: Path) -> None:
    capture(model, None, ids, bits=budget).save(path)
