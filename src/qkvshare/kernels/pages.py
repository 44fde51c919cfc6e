"""Memory in large pages: a cache is written once, and what that costs most is its pages."""

from __future__ import annotations

import mmap
from contextlib import suppress

import torch
from torch import Tensor

# Anonymous memory comes in pages of 4 KiB, each of which the system is asked for when it is first
# written. Linux gives 2 MiB at once to those who say so, in its usual setting `madvise`.
_HUGE = getattr(mmap, "MADV_HUGEPAGE", None)
_WORTH = 4 << 20  # bytes


def pages(nbytes: int) -> Tensor:
    """Memory of its own, uint8 ``[nbytes]``, not initialized."""
    if _HUGE is None or nbytes < _WORTH:
        return torch.empty(nbytes, dtype=torch.uint8)
    space = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # a kernel without them: the same memory, a little slower
        space.madvise(_HUGE)
    return torch.frombuffer(space, dtype=torch.uint8)
