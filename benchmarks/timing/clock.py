"""Milliseconds between two moments, on a GPU by its own events."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch

# Seconds in which torch's threads stop looking for more work: they spin for about 10 ms.
_SPINNING = 0.03


@dataclass(frozen=True)
class Clock:
    """For what runs on ``device``.

    A GPU works behind the program that commands it: a moment there is when all commands so far have
    been done, and nobody waits for it before `between` is asked.
    """

    device: torch.device

    def now(self) -> Any:
        """This moment."""
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self.device))
        return event

    def between(self, start: Any, end: Any) -> float:
        """Milliseconds from one moment to another."""
        if self.device.type != "cuda":
            return float(1000 * (end - start))
        end.synchronize()
        return float(start.elapsed_time(end))

    def settle(self) -> None:
        """Wait until nothing is under way, as nothing is where one waits for a card."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        time.sleep(_SPINNING)
