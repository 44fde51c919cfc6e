"""Kernels on torch's own threads.

They spin for milliseconds after torch's last work, on the processors that threads of our own would
need; and they are awake.
"""

from __future__ import annotations

import ctypes
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import torch
from numba import types

from .compiling import callback


@cache
def parallel() -> Any:
    """GNU's OpenMP, whose threads torch has; None where it has others.

    ``f(function, address, threads, 0)`` calls ``function(address)`` on each of them.
    """
    try:
        found = ctypes.CDLL(None).GOMP_parallel
    except (AttributeError, OSError, TypeError):
        return None
    pointer, number = ctypes.c_void_p, ctypes.c_uint
    found.argtypes, found.restype = [pointer, pointer, number, number], None
    return found


def for_threads(function: Any) -> Any:
    """``function``, of an address, compiled for `parallel` and for Python."""
    made = callback(function, types.void(types.voidptr))
    compiled: Any = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(made.address)
    compiled.made = made  # it owns the code
    return compiled


def on_all(function: Any, address: int, most: int) -> None:
    """``function(address)`` on as many threads as torch uses, ``most`` at most, and wait."""
    threads, together = min(most, torch.get_num_threads()), parallel()
    if threads <= 1:
        function(address)
    elif together is not None:
        together(function, address, threads, 0)
    else:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(function, [address] * threads))
