"""A queue that threads share without the interpreter: who adds counts what is ready, who takes
counts what is taken, in memory that both see."""

from __future__ import annotations

from typing import Any

import numpy as np

from .compiling import kernel, part
from .cpu_memory import claim, count_on, rest, seen

# The state, int64 each: the next number to take, how many are ready, whether it is closed.
NEXT, READY, CLOSED, STATE = 0, 1, 2, 3
_IDLE = 1 << 18  # rests, of some tens of nanoseconds each


@kernel
def count(state: Any, at: Any) -> None:
    """One more, after all that this thread has written."""
    count_on(np.int64(state.ctypes.data) + 8 * at)


@part
def take(state: Any, waits: Any) -> Any:
    """A number that is this thread's alone; -1 where there is none, or, for one who ``waits``,
    where none has come for some milliseconds, or none will come."""
    first, idle = np.int64(state.ctypes.data), 0
    while not seen(first + 8 * CLOSED):
        at = seen(first + 8 * NEXT)
        if at < seen(first + 8 * READY):
            if claim(first + 8 * NEXT, at):
                return at
        elif waits and idle < _IDLE:
            idle += 1
            rest()
        else:
            break
    return np.int64(-1)


@part
def finish(table: Any, number: Any, column: Any) -> None:
    """Say in ``column`` of row ``number`` that it is done, after all that was written."""
    count_on(np.int64(table.ctypes.data) + 8 * (number * table.shape[1] + column))
