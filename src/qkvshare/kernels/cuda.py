"""Which rows Triton decodes on a GPU; it is imported only when a kernel is first used."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec

DIMS = (64, 128, 256)  # numbers of a row


@cache
def has_triton() -> bool:
    """Whether Triton is installed; it is imported only when a kernel is first used."""
    return find_spec("triton") is not None


def fits(dim: int) -> bool:
    """Whether there are kernels for rows of ``dim`` numbers here."""
    return has_triton() and dim in DIMS
