"""Work on other threads: one thing after another with the next under way, or all at once."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TypeVar

import torch

T = TypeVar("T")
R = TypeVar("R")

_MOST = 2  # results that wait to be taken; layers are large


def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(os.cpu_count() or 1, "qkvshare")


# Threads that stay, since to start one and to wait for its end takes milliseconds.
_pool = _threads()


def _start_anew() -> None:
    """A child process has no threads but the one that forked."""
    global _pool
    _pool = _threads()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_start_anew)


def at_once(function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """Results in order, of work that all processors have begun when this returns.

    For work that leaves the interpreter, and for a caller whose own is done elsewhere. What
    ``function`` raises comes out where its result would have; what then waits is called off.
    """
    under_way = deque(_pool.submit(function, item) for item in items)

    def results() -> Iterator[R]:
        try:
            while under_way:
                yield under_way.popleft().result()
        finally:
            for one in under_way:
                one.cancel()

    return results()


def ahead(function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """Results in order; on as many threads as torch uses, two at most.

    What ``function`` raises comes out where its result would have. Nothing is under way when this
    ends, however it ends.
    """
    threads = min(_MOST, torch.get_num_threads())
    if threads == 1:
        yield from map(function, items)
        return
    inference, grad = torch.is_inference_mode_enabled(), torch.is_grad_enabled()

    def work(item: T) -> R:
        # Both modes are a thread's own.
        with torch.inference_mode(inference), torch.set_grad_enabled(grad):
            return function(item)

    under_way = deque[Future[R]]()
    try:
        for item in items:
            under_way.append(_pool.submit(work, item))
            del item  # nothing is held that the taker lets go
            if len(under_way) == threads:
                yield under_way.popleft().result()
        while under_way:
            yield under_way.popleft().result()
    finally:
        for one in under_way:
            one.cancel()
        wait(under_way)
