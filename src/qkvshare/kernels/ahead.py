"""Work on other threads: one thing after another with the next already under way, one beside what
the caller does, or all at once."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue
from threading import Lock, Semaphore
from typing import Any, TypeVar

import torch

T = TypeVar("T")
R = TypeVar("R")

# Each thread holds one result that nobody has taken yet; layers are large.
_MOST = 2


# Threads that stay, since to start one and to wait for its end takes milliseconds.
_PROCESSORS = os.cpu_count() or 1
_thread = ThreadPoolExecutor(1, "qkvshare")
_all = ThreadPoolExecutor(_PROCESSORS, "qkvshare-all")


def beside(function: Callable[..., R], *arguments: Any) -> Future[R]:
    """``function`` beside the caller; it may not use `beside` itself and wait for that."""
    return _thread.submit(function, *arguments)


def at_once(function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """Results in order, of work that all processors have begun when this returns.

    For work that leaves the interpreter, and for a caller whose own is done elsewhere. What
    ``function`` raises comes out where its result would have; what then waits is called off.
    """
    under_way = deque(_all.submit(function, item) for item in items)

    def results() -> Iterator[R]:
        try:
            while under_way:
                yield under_way.popleft().result()
        finally:
            for one in under_way:
                one.cancel()

    return results()


def _start_anew() -> None:
    """A child process has no threads but the one that forked."""
    global _thread, _all
    _thread = ThreadPoolExecutor(1, "qkvshare")
    _all = ThreadPoolExecutor(_PROCESSORS, "qkvshare-all")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_start_anew)


def ahead(function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """Results in order; as many threads as torch uses, two at most.

    ``items`` are taken by the threads, one at a time, since finding one may be work too. What it
    or ``function`` raises comes out where its result would have.
    """
    threads = min(_MOST, torch.get_num_threads())
    if threads == 1:
        yield from map(function, items)
        return
    source, over = iter(items), False
    taking, room = Lock(), Semaphore(threads)
    results: SimpleQueue[Future[R] | None] = SimpleQueue()
    inference, grad = torch.is_inference_mode_enabled(), torch.is_grad_enabled()

    def work() -> None:
        nonlocal over
        # Both modes are a thread's own.
        with torch.inference_mode(inference), torch.set_grad_enabled(grad):
            while True:
                room.acquire()
                result: Future[R] = Future()
                with taking:
                    if over:
                        return
                    try:
                        item = next(source)
                    except StopIteration:
                        over = True
                        results.put(None)
                        return
                    except BaseException as error:
                        over = True
                        result.set_exception(error)
                        results.put(result)
                        return
                    results.put(result)
                try:
                    result.set_result(function(item))
                except BaseException as error:
                    result.set_exception(error)
                del item, result  # nothing is held that the taker lets go

    with ThreadPoolExecutor(threads) as pool:
        for _ in range(threads):
            pool.submit(work)
        try:
            while (result := results.get()) is not None:
                taken = result.result()
                del result
                room.release()
                yield taken
                del taken
        finally:
            over = True
            room.release(threads)
