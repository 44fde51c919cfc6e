"""One thing after another, with the next already under way on another thread."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

T = TypeVar("T")
R = TypeVar("R")

# Each thread holds one result that nobody has taken yet; layers are large.
_MOST = 2


def ahead(function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """Results in order; as many threads as torch uses, two at most.

    What ``function`` raises comes out where its result would have.
    """
    threads = min(_MOST, torch.get_num_threads())
    if threads == 1:
        yield from map(function, items)
        return
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[Future[R]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) == threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
