"""Large pages, used again: a cache is written once, and what that costs most is its pages.

Anonymous memory comes in pages of 4 KiB, each of which the system is asked for when it is first
written. Linux gives 2 MiB at once to those who say so, in its usual setting ``madvise``. What a
dropped cache had is kept for the next one, as torch does on a GPU, up to `KEPT`: lent back
meanwhile, so that a system short of memory takes it without asking.
"""

from __future__ import annotations

import mmap
from collections import deque
from contextlib import suppress
from weakref import finalize

import numpy as np
import torch
from torch import Tensor

LARGE = 32 << 20  # bytes that come, and go, together
KEPT = 1 << 30  # bytes of dropped caches, at most
_WORTH = 4 << 20  # bytes below which the usual way is as good

_kept: deque[mmap.mmap] = deque()


def pages(nbytes: int) -> Tensor:
    """Memory of its own, uint8 ``[nbytes]``, not initialized; up to `LARGE` is as good as less."""
    if nbytes < _WORTH:
        return torch.empty(nbytes, dtype=torch.uint8)
    space = None
    with suppress(IndexError):
        space = _kept.pop() if nbytes <= LARGE else None
    if space is None:
        space = mmap.mmap(-1, max(nbytes, LARGE))
        _advise(space, "MADV_HUGEPAGE")
    array = np.frombuffer(space, np.uint8)
    # Whoever uses a part of it keeps the array alive, and nobody else does.
    finalize(array, _keep, space).atexit = False
    return torch.from_numpy(array[:nbytes])


def forget() -> None:
    """Give what is kept back to the system."""
    _kept.clear()


def _keep(space: mmap.mmap) -> None:
    if len(space) == LARGE and len(_kept) < KEPT // LARGE:
        _advise(space, "MADV_FREE")
        _kept.append(space)


def _advise(space: mmap.mmap, advice: str) -> None:
    """Where the system knows the advice, and follows it: otherwise a little slower."""
    if hasattr(mmap, advice):
        with suppress(OSError):
            space.madvise(getattr(mmap, advice))
